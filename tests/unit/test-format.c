/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The bytes of the header: what is written, what is read, what is refused
 * and in which order.
 */

#include <config.h>

#include "check.h"
#include "common.h"
#include "error.h"
#include "format.h"

#define VERSION_AT 8
#define BACKING_AT 12
#define IMAGE_AT 1036
#define SIZE_AT 2060

/* A valid header, byte by byte from the specification. */
static void
make_valid (uint8_t buf[FORMAT_HEADER_BYTES])
{
  static const uint8_t size[8] = { 0, 0, 0, 2, 0x40, 0, 0x12, 0 };

  memset (buf, 0, FORMAT_HEADER_BYTES);
  memcpy (buf, "ADD_COW\xff\0\0\0\1", 12);
  memcpy (buf + BACKING_AT, "base.img", 8);
  memcpy (buf + IMAGE_AT, "vm.raw", 6);
  memcpy (buf + SIZE_AT, size, 8);
}
#define VALID_SIZE UINT64_C (0x240001200)

static void
put_size (uint8_t *buf, uint64_t size)
{
  int i;

  for (i = 0; i < 8; i++)
    buf[SIZE_AT + i] = size >> (56 - 8 * i);
}

static void
test_constants (void)
{
  CHECK_EQ (FORMAT_HEADER_BYTES, 2068);
  CHECK_EQ (FORMAT_SECTOR_BYTES, 512);
  CHECK_EQ (FORMAT_NAME_BYTES, 1024);
  CHECK_EQ (FORMAT_MAGIC_BYTES, 8);
  CHECK (memcmp (FORMAT_MAGIC, "\x41\x44\x44\x5f\x43\x4f\x57\xff", 8) == 0);
}

static void
test_encode_is_byte_exact (void)
{
  uint8_t want[FORMAT_HEADER_BYTES], got[FORMAT_HEADER_BYTES];
  struct header header;

  make_valid (want);
  memset (&header, 'x', sizeof header); /* behind the NULs */
  CHECK_EQ (format_set_name (header.backing_file, "base.img"), 0);
  strcpy (header.image_file, "vm.raw");
  header.size_bytes = VALID_SIZE;
  memset (got, 0xee, sizeof got);
  format_encode (&header, got);
  CHECK (memcmp (got, want, sizeof got) == 0);

  /* What is behind the name of the backing file is kept. */
  memset (header.backing_file + 9, 'h', 1024 - 9);
  memset (want + BACKING_AT + 9, 'h', 1024 - 9);
  format_encode (&header, got);
  CHECK (memcmp (got, want, sizeof got) == 0);

  /* No backing file, no image, no size. */
  CHECK_EQ (format_set_name (header.backing_file, ""), 0);
  header.image_file[0] = '\0';
  header.size_bytes = 0;
  memset (want + 12, 0, sizeof want - 12);
  format_encode (&header, got);
  CHECK (memcmp (got, want, sizeof got) == 0);
}

static void
test_encode_size (void)
{
  uint8_t buf[FORMAT_HEADER_BYTES], size[FORMAT_SIZE_BYTES];

  make_valid (buf);
  format_encode_size (VALID_SIZE, size);
  CHECK (memcmp (buf + FORMAT_SIZE_OFFSET, size, sizeof size) == 0);
  CHECK_EQ (FORMAT_SIZE_OFFSET, SIZE_AT);
  CHECK_EQ (FORMAT_SIZE_BYTES, 8);
}

static void
test_decode (void)
{
  uint8_t buf[FORMAT_HEADER_BYTES];
  struct header header;

  make_valid (buf);
  CHECK_EQ (format_decode (buf, &header), 0);
  CHECK_STR (header.backing_file, "base.img");
  CHECK_STR (header.image_file, "vm.raw");
  CHECK_EQ (header.size_bytes, VALID_SIZE);

  /* What follows the NUL is not part of the name. */
  memset (buf + BACKING_AT + 9, 0xa5, 1024 - 9);
  memset (buf + IMAGE_AT + 7, 0x5a, 1024 - 7);
  CHECK_EQ (format_decode (buf, &header), 0);
  CHECK_STR (header.backing_file, "base.img");
  CHECK_STR (header.image_file, "vm.raw");
  CHECK_EQ (header.size_bytes, VALID_SIZE);
}

static void
test_round_trip (void)
{
  static const size_t lengths[] = { 0, 1, 8, 512, 1022, 1023 };
  struct rng rng = { 1 };
  size_t i, j;

  for (i = 0; i < 6; i++)
    for (j = 0; j < 6; j++) {
      uint8_t buf[FORMAT_HEADER_BYTES];
      struct header in = { .size_bytes = 0 }, out;
      char name[1025];
      size_t k;

      for (k = 0; k < sizeof name; k++)
        name[k] = rng_range (&rng, 1, 255);
      name[lengths[i]] = '\0';
      CHECK_EQ (format_set_name (in.backing_file, name), 0);
      name[lengths[i]] = 'n';
      name[lengths[j]] = '\0';
      CHECK_EQ (format_set_name (in.image_file, name), 0);
      in.size_bytes = rng_next (&rng) / 2 / 512 * 512;
      format_encode (&in, buf);
      CHECK_EQ (format_decode (buf, &out), 0);
      CHECK (memcmp (&in, &out, sizeof in) == 0);
    }
}

/* Every error there is in a header, in the order they are told. */
static const struct {
  int err;
  size_t at, count;
  const char *bytes; /* NULL: all 'x' */
} damages[] = {
  { ADDCOW_E_MAGIC, 7, 1, "\xfe" },
  { ADDCOW_E_VERSION, VERSION_AT, 4, "\0\0\0\2" },
  { ADDCOW_E_BACKING_NAME, BACKING_AT, 1024, NULL },
  { ADDCOW_E_IMAGE_NAME, IMAGE_AT, 1024, NULL },
  { ADDCOW_E_SIZE_LARGE, SIZE_AT, 1, "\x80" },
  { ADDCOW_E_SIZE_SECTORS, SIZE_AT + 7, 1, "\1" },
};
#define NR_DAMAGES 6

static void
test_first_error_that_applies (void)
{
  unsigned which, i;

  for (which = 1; which < 1u << NR_DAMAGES; which++) {
    uint8_t buf[FORMAT_HEADER_BYTES];
    struct header header;

    make_valid (buf);
    for (i = NR_DAMAGES; i-- > 0;)
      if (which & 1u << i) {
        if (damages[i].bytes)
          memcpy (buf + damages[i].at, damages[i].bytes, damages[i].count);
        else
          memset (buf + damages[i].at, 'x', damages[i].count);
      }
    CHECK_EQ (format_decode (buf, &header), damages[__builtin_ctz (which)].err);
  }
}

static void
test_errors (void)
{
  static const uint32_t versions[] = {
    0, 2, 255, 256, 0x01000000, 0x00010001, UINT32_MAX,
  };
  uint8_t buf[FORMAT_HEADER_BYTES];
  struct header header;
  size_t i, j;

  /* Each byte of the magic counts, and of the version. */
  for (i = 0; i < 12; i++) {
    make_valid (buf);
    buf[i] ^= 0x20;
    CHECK_EQ (format_decode (buf, &header),
              i < VERSION_AT ? ADDCOW_E_MAGIC : ADDCOW_E_VERSION);
  }
  for (i = 0; i < sizeof versions / sizeof versions[0]; i++) {
    make_valid (buf);
    for (j = 0; j < 4; j++)
      buf[VERSION_AT + j] = versions[i] >> (24 - 8 * j);
    CHECK_EQ (format_decode (buf, &header), ADDCOW_E_VERSION);
  }

  /* A NUL in the last byte is an end; one in the next field is not. */
  make_valid (buf);
  memset (buf + BACKING_AT, 'b', 1023);
  memset (buf + IMAGE_AT, 'i', 1023);
  CHECK_EQ (format_decode (buf, &header), 0);
  CHECK_EQ (strlen (header.backing_file), 1023);
  CHECK_EQ (strlen (header.image_file), 1023);
  buf[BACKING_AT + 1023] = 'b';
  CHECK_EQ (format_decode (buf, &header), ADDCOW_E_BACKING_NAME);
  buf[BACKING_AT + 1023] = '\0';
  buf[IMAGE_AT + 1023] = 'i';
  CHECK_EQ (format_decode (buf, &header), ADDCOW_E_IMAGE_NAME);
}

static void
test_sizes (void)
{
  static const struct {
    uint64_t size;
    int err;
  } cases[] = {
    { 0, 0 },
    { 1, ADDCOW_E_SIZE_SECTORS },
    { 256, ADDCOW_E_SIZE_SECTORS },
    { 511, ADDCOW_E_SIZE_SECTORS },
    { 512, 0 },
    { 513, ADDCOW_E_SIZE_SECTORS },
    { UINT64_C (1) << 62, 0 },
    { (UINT64_C (1) << 63) - 512, 0 },
    { (UINT64_C (1) << 63) - 1, ADDCOW_E_SIZE_SECTORS },
    { UINT64_C (1) << 63, ADDCOW_E_SIZE_LARGE },
    { (UINT64_C (1) << 63) + 1, ADDCOW_E_SIZE_LARGE },
    { UINT64_MAX, ADDCOW_E_SIZE_LARGE },
  };
  size_t i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    uint8_t buf[FORMAT_HEADER_BYTES];
    struct header header;

    CHECK_EQ (format_check_size (cases[i].size), cases[i].err);
    make_valid (buf);
    put_size (buf, cases[i].size);
    CHECK_EQ (format_decode (buf, &header), cases[i].err);
    if (cases[i].err == 0)
      CHECK_EQ (header.size_bytes, cases[i].size);
  }
}

static void
test_set_name (void)
{
  char field[FORMAT_NAME_BYTES];
  char name[1025];
  size_t i;

  memset (field, 'x', sizeof field);
  CHECK_EQ (format_set_name (field, "a"), 0);
  CHECK_STR (field, "a");
  for (i = 1; i < sizeof field; i++)
    CHECK_EQ (field[i], 0);

  memset (name, 'n', sizeof name);
  name[1024] = '\0';
  CHECK_EQ (format_set_name (field, name), ADDCOW_E_NAME_LONG);
  name[1023] = '\0';
  CHECK_EQ (format_set_name (field, name), 0);
  CHECK_STR (field, name);
}

/*--- Hints. -----------------------------------------------------------*/

/* A header with COUNT BYTES behind the name, and behind those the byte
 * FILL.
 */
static struct header
with_area (const char *name, const char *bytes, size_t count, int fill)
{
  struct header header = { .size_bytes = 0 };
  const size_t at = strlen (name) + 1;

  memset (header.backing_file, fill, sizeof header.backing_file);
  memcpy (header.backing_file, name, at);
  CHECK (at + count <= sizeof header.backing_file);
  memcpy (header.backing_file + at, bytes, count);
  return header;
}

/* NULL or -1: there is no such hint. */
static void
check_hints (const struct header *header, const char *format, int64_t size,
             int64_t mtime)
{
  uint8_t buf[FORMAT_HEADER_BYTES];
  struct header decoded;
  struct hints hints;

  /* As they are in a file. */
  format_encode (header, buf);
  CHECK_EQ (format_decode (buf, &decoded), 0);
  CHECK_STR (decoded.backing_file, header->backing_file);
  memset (&hints, 0xee, sizeof hints);
  format_get_hints (&decoded, &hints);
  CHECK_STR (hints.format, format ? format : "");
  CHECK_EQ (hints.has_size, size != -1);
  if (size != -1)
    CHECK_EQ (hints.size_bytes, size);
  CHECK_EQ (hints.has_mtime, mtime != -1);
  if (mtime != -1)
    CHECK_EQ (hints.mtime_ns, mtime);
}

static void
test_get_hints (void)
{
#define BYTES(string) string, sizeof string - 1
#define F31 "0123456789ABCDEFabcdef_-xyzXYZ0"
  static const struct {
    const char *bytes;
    size_t count;
    const char *format;
    int64_t size, mtime;
  } cases[] = {
    /* As they should be. */
    { BYTES (""), NULL, -1, -1 },
    { BYTES ("format=raw\0size=65536\0mtime=1234567890123456789\0\0"), "raw",
      65536, 1234567890123456789 },
    { BYTES ("mtime=0\0size=0\0format=add-cow\0\0"), "add-cow", 0, 0 },
    { BYTES ("format=" F31 "\0\0"), F31, -1, -1 },
    { BYTES ("size=9223372036854775807\0mtime=-9223372036854775808\0\0"), NULL,
      INT64_MAX, INT64_MIN },
    { BYTES ("mtime=9223372036854775807\0\0"), NULL, -1, INT64_MAX },
    { BYTES ("mtime=-2\0size=0077\0\0"), NULL, 77, -2 },
    /* Other keys, and what is no key. */
    { BYTES ("x=1\0format=raw\0uuid=\0size=1\0size\0=\0=2\0mtime=3\0\0"), "raw",
      1, 3 },
    { BYTES ("Format=raw\0SIZE=1\0mtimes=2\0 size=3\0xsize=4\0\0"), NULL, -1,
      -1 },
    { BYTES ("format\0size\0mtime\0format:raw\0\xff\xfe\x01\n\0size=5\0\0"),
      NULL, 5, -1 },
    /* Bad values, each before a good one of another key. */
    { BYTES ("format=\0size=1\0\0"), NULL, 1, -1 },
    { BYTES ("format=" F31 "x\0size=1\0\0"), NULL, 1, -1 },
    { BYTES ("format=a/b\0size=1\0\0"), NULL, 1, -1 },
    { BYTES ("format=a b\0size=1\0\0"), NULL, 1, -1 },
    { BYTES ("format=raw\n\0size=1\0\0"), NULL, 1, -1 },
    { BYTES ("format=r\xc3\xa4w\0size=1\0\0"), NULL, 1, -1 },
    { BYTES ("format=raw,x=y\0size=1\0\0"), NULL, 1, -1 },
    { BYTES ("size=\0mtime=\0format=raw\0\0"), "raw", -1, -1 },
    { BYTES ("size=-1\0mtime=--1\0format=raw\0\0"), "raw", -1, -1 },
    { BYTES ("size=-0\0mtime=-\0format=raw\0\0"), "raw", -1, -1 },
    { BYTES ("size=+1\0mtime=+1\0format=raw\0\0"), "raw", -1, -1 },
    { BYTES ("size= 1\0mtime= 1\0format=raw\0\0"), "raw", -1, -1 },
    { BYTES ("size=1 \0mtime=-1 \0format=raw\0\0"), "raw", -1, -1 },
    { BYTES ("size=1K\0mtime=1.5\0format=raw\0\0"), "raw", -1, -1 },
    { BYTES ("size=0x10\0mtime=0x10\0format=raw\0\0"), "raw", -1, -1 },
    { BYTES ("size=9223372036854775808\0mtime=9223372036854775808\0"
             "format=raw\0\0"),
      "raw", -1, -1 },
    { BYTES ("size=18446744073709551617\0mtime=-9223372036854775809\0"
             "format=raw\0\0"),
      "raw", -1, -1 },
    { BYTES ("size=99999999999999999999999999\0mtime=3\0\0"), NULL, -1, 3 },
    /* The first good one with a key counts. */
    { BYTES ("format=raw\0format=qcow2\0size=1\0size=2\0mtime=3\0mtime=4\0\0"),
      "raw", 1, 3 },
    { BYTES ("format=\0format=qcow2\0size=x\0size=2\0mtime=\0mtime=4\0\0"),
      "qcow2", 2, 4 },
    { BYTES ("size=0\0size=2\0mtime=0\0mtime=4\0\0"), NULL, 0, 0 },
    /* Nothing behind the empty string. */
    { BYTES ("\0format=raw\0size=1\0mtime=2\0\0"), NULL, -1, -1 },
    { BYTES ("size=1\0\0format=raw\0mtime=2\0\0"), NULL, 1, -1 },
  };
  size_t i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const struct header header = with_area ("base.img", cases[i].bytes,
                                            cases[i].count, 0);

    check_hints (&header, cases[i].format, cases[i].size, cases[i].mtime);
  }
}

/* The end of the field is an end too. */
static void
test_hints_at_the_end (void)
{
  struct header header;
  char name[FORMAT_NAME_BYTES];
  size_t at;

  /* Junk, with and without a NUL in it. */
  header = with_area ("base.img", "", 0, 0xff);
  check_hints (&header, NULL, -1, -1);
  header = with_area ("base.img", BYTES ("size=1\0"), '7');
  check_hints (&header, NULL, 1, -1);
  header = with_area ("base.img", BYTES ("size=1\0mtime="), '7');
  check_hints (&header, NULL, 1, -1);
  header = with_area ("base.img", BYTES ("mtime=1\0format="), 'r');
  check_hints (&header, NULL, -1, 1);

  /* A string that just ends there, without an empty one; and one that does
   * not, though it goes on well in the field behind.
   */
  memset (name, 'n', sizeof name);
  for (at = FORMAT_NAME_BYTES - 15; at <= FORMAT_NAME_BYTES - 7; at++) {
    const size_t room = FORMAT_NAME_BYTES - at;

    name[at - 1] = '\0';
    header = with_area (name, "size=12", MIN (room, 7), 0);
    strcpy (header.image_file, "3");
    check_hints (&header, NULL, room > 7 ? 12 : -1, -1);
    name[at - 1] = 'n';
  }

  /* No room at all; no backing file. */
  name[FORMAT_NAME_BYTES - 1] = '\0';
  header = with_area (name, "", 0, 0);
  strcpy (header.image_file, "size=1");
  check_hints (&header, NULL, -1, -1);
  header = with_area ("", BYTES ("format=raw\0size=1\0\0"), 0);
  check_hints (&header, NULL, -1, -1);
}

/* Behind NAME are COUNT BYTES and then zeroes. */
static void
check_area (const struct header *header, const char *name, const char *bytes,
            size_t count)
{
  const struct header want = with_area (name, bytes, count, 0);

  CHECK (memcmp (header->backing_file, want.backing_file,
                 sizeof want.backing_file) == 0);
}

static void
test_set_hints (void)
{
  struct header header = with_area ("base.img", BYTES ("x=unknown\0"), 'j');
  struct hints hints = {
    .format = "qcow2",
    .has_size = true,
    .size_bytes = INT64_MAX,
    .has_mtime = true,
    .mtime_ns = INT64_MIN,
  };

  CHECK_EQ (format_set_hints (&header, &hints), 0);
  check_area (&header, "base.img",
              BYTES ("format=qcow2\0size=9223372036854775807\0"
                     "mtime=-9223372036854775808\0\0"));
  check_hints (&header, "qcow2", INT64_MAX, INT64_MIN);
  strcpy (hints.format, F31);
  hints.size_bytes = 0;
  hints.mtime_ns = 1;
  CHECK_EQ (format_set_hints (&header, &hints), 0);
  check_area (&header, "base.img",
              BYTES ("format=" F31 "\0size=0\0mtime=1\0\0"));
  hints.has_mtime = false;
  CHECK_EQ (format_set_hints (&header, &hints), 0);
  check_area (&header, "base.img", BYTES ("format=" F31 "\0size=0\0\0"));
  hints.has_size = false;
  hints.has_mtime = true;
  hints.format[0] = '\0';
  CHECK_EQ (format_set_hints (&header, &hints), 0);
  check_area (&header, "base.img", BYTES ("mtime=1\0\0"));
  hints.has_mtime = false;
  CHECK_EQ (format_set_hints (&header, &hints), 0);
  check_area (&header, "base.img", BYTES (""));

  /* Another name has none. */
  strcpy (hints.format, "raw");
  CHECK_EQ (format_set_hints (&header, &hints), 0);
  CHECK_EQ (format_set_name (header.backing_file, "b"), 0);
  check_area (&header, "b", BYTES (""));
}

static void
test_hints_fit (void)
{
  const struct hints none = { .has_size = false };
  const struct hints hints = {
    .format = "raw",
    .has_size = true,
    .size_bytes = 65536,
    .has_mtime = true,
    .mtime_ns = 1,
  };
  const size_t count = sizeof "format=raw\0size=65536\0mtime=1\0";
  char name[FORMAT_NAME_BYTES];
  struct header header, before;

  /* To the last byte, which is the NUL of the empty string. */
  CHECK_EQ (count, 31);
  memset (name, 'n', sizeof name);
  name[1024 - 31 - 1] = '\0';
  header = with_area (name, "", 0, 'j');
  CHECK_EQ (format_set_hints (&header, &hints), 0);
  check_area (&header, name, BYTES ("format=raw\0size=65536\0mtime=1\0\0"));
  check_hints (&header, "raw", 65536, 1);

  /* And one more. */
  name[1024 - 31 - 1] = 'n';
  name[1024 - 31] = '\0';
  header = before = with_area (name, "", 0, 'j');
  CHECK_EQ (format_set_hints (&header, &hints), ADDCOW_E_HINTS_LONG);
  CHECK (memcmp (&header, &before, sizeof header) == 0);

  /* No hints fit always. */
  name[1024 - 31] = 'n';
  name[1023] = '\0';
  header = with_area (name, "", 0, 0);
  CHECK_EQ (format_set_hints (&header, &none), 0);
  check_area (&header, name, BYTES (""));
  CHECK_EQ (format_set_hints (&header, &hints), ADDCOW_E_HINTS_LONG);
  check_area (&header, name, BYTES (""));
}

static void
test_mend_hints (void)
{
  enum {
    NO_KEY = FORMAT_HINT_NO_KEY,
    VALUE = FORMAT_HINT_VALUE,
    TWICE = FORMAT_HINT_TWICE,
    TRAILING = FORMAT_HINT_TRAILING,
  };
  static const struct {
    const char *bytes;
    size_t count;
    unsigned wrong;
    const char *mended;
    size_t nr_mended;
  } cases[] = {
    { BYTES (""), 0, BYTES ("") },
    { BYTES ("format=raw\0size=1\0mtime=-1\0x=\0\0"), 0,
      BYTES ("format=raw\0size=1\0mtime=-1\0x=\0\0") },
    { BYTES ("x=1\0x=1\0x=2\0\0"), 0, BYTES ("x=1\0x=1\0x=2\0\0") },
    { BYTES ("size=1\0x\0y=1\0\0"), NO_KEY, BYTES ("size=1\0y=1\0\0") },
    { BYTES ("=1\0format=raw\0\0"), NO_KEY, BYTES ("format=raw\0\0") },
    { BYTES ("\xff\n\0"), NO_KEY, BYTES ("") },
    { BYTES ("size=-1\0size=2\0\0"), VALUE, BYTES ("size=2\0\0") },
    { BYTES ("mtime=\0\0"), VALUE, BYTES ("") },
    { BYTES ("a=b\0format=a.b\0\0"), VALUE, BYTES ("a=b\0\0") },
    { BYTES ("size=2\0size=1\0\0"), TWICE, BYTES ("size=2\0\0") },
    { BYTES ("format=raw\0x=1\0format=raw\0\0"), TWICE,
      BYTES ("format=raw\0x=1\0\0") },
    { BYTES ("mtime=1\0mtime=1\0mtime=x\0\0"), TWICE | VALUE,
      BYTES ("mtime=1\0\0") },
    { BYTES ("\0size=1\0"), TRAILING, BYTES ("") },
    { BYTES ("size=1\0\0format=raw"), TRAILING, BYTES ("size=1\0\0") },
    { BYTES ("size\0size=1\0size=2\0size=?\0\0\0\0z"),
      NO_KEY | VALUE | TWICE | TRAILING, BYTES ("size=1\0\0") },
  };
  char long_string[FORMAT_NAME_BYTES];
  struct header header;
  size_t i;

  for (i = 0; i < ARRAY_SIZE (cases); i++) {
    header = with_area ("base.img", cases[i].bytes, cases[i].count, 0);
    CHECK_EQ (format_check_hints (&header), cases[i].wrong);
    format_mend_hints (&header);
    check_area (&header, "base.img", cases[i].mended, cases[i].nr_mended);
    CHECK_EQ (format_check_hints (&header), 0);
  }

  /* Up to the end: without a NUL, and with one but no empty string. */
  memset (long_string, 'x', sizeof long_string);
  memcpy (long_string, "size=1\0y=", 9);
  header = with_area ("base.img", long_string, FORMAT_NAME_BYTES - 9, 0);
  CHECK_EQ (format_check_hints (&header), FORMAT_HINT_NO_END);
  header.backing_file[FORMAT_NAME_BYTES - 1] = '\0';
  CHECK_EQ (format_check_hints (&header), 0);
  header.backing_file[FORMAT_NAME_BYTES - 1] = 'x';
  format_mend_hints (&header);
  check_area (&header, "base.img", BYTES ("size=1\0\0"));

  /* There are none without a name. */
  header = with_area ("", BYTES ("x\0\0y"), 'j');
  CHECK_EQ (format_check_hints (&header), 0);
  format_mend_hints (&header);
  CHECK (memcmp (header.backing_file, "\0x\0\0yj", 6) == 0);
}

static void
test_is_hint (void)
{
  CHECK (format_is_hint ("r"));
  CHECK (format_is_hint ("raw"));
  CHECK (format_is_hint ("add-cow"));
  CHECK (format_is_hint (F31));
  CHECK (!format_is_hint (F31 "x"));
  CHECK (!format_is_hint (""));
  CHECK (!format_is_hint ("a=b"));
  CHECK (!format_is_hint ("a.b"));
  CHECK (!format_is_hint (" raw"));
}

static void
test_all_errors (void)
{
  uint8_t buf[FORMAT_HEADER_BYTES];
  int errors[FORMAT_MAX_ERRORS];

  make_valid (buf);
  CHECK_EQ (format_errors (buf, errors), 0);
  put_size (buf, UINT64_MAX);
  CHECK_EQ (format_errors (buf, errors), 1);
  CHECK_EQ (errors[0], ADDCOW_E_SIZE_LARGE);
  memset (buf + BACKING_AT, 'x', 2 * FORMAT_NAME_BYTES);
  CHECK_EQ (format_errors (buf, errors), 3);
  CHECK_EQ (errors[0], ADDCOW_E_BACKING_NAME);
  CHECK_EQ (errors[1], ADDCOW_E_IMAGE_NAME);
  CHECK_EQ (errors[2], ADDCOW_E_SIZE_LARGE);
  put_size (buf, 513);
  buf[BACKING_AT + 9] = 0;
  CHECK_EQ (format_errors (buf, errors), 2);
  CHECK_EQ (errors[0], ADDCOW_E_IMAGE_NAME);
  CHECK_EQ (errors[1], ADDCOW_E_SIZE_SECTORS);

  /* Then the rest may be anything. */
  buf[VERSION_AT] = 1;
  CHECK_EQ (format_errors (buf, errors), 1);
  CHECK_EQ (errors[0], ADDCOW_E_VERSION);
  buf[0] = 'a';
  CHECK_EQ (format_errors (buf, errors), 1);
  CHECK_EQ (errors[0], ADDCOW_E_MAGIC);
}

static void
test_lengths (void)
{
  static const struct {
    uint64_t size, bitmap;
  } cases[] = {
    { 0, 0 },
    { 512, 1 },
    { 8 * 512, 1 },
    { 9 * 512, 2 },
    { UINT64_C (1) << 30, 1 << 18 },
    { (UINT64_C (1) << 30) + 512, (1 << 18) + 1 },
    { UINT64_C (1) << 50, UINT64_C (1) << 38 },
    { (UINT64_C (1) << 63) - 512, UINT64_C (1) << 51 },
  };
  size_t i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    CHECK_EQ (format_bitmap_bytes (cases[i].size), cases[i].bitmap);
    CHECK_EQ (format_file_bytes (cases[i].size), 2068 + cases[i].bitmap);
  }
}

int
main (void)
{
  test_constants ();
  test_encode_is_byte_exact ();
  test_encode_size ();
  test_decode ();
  test_round_trip ();
  test_first_error_that_applies ();
  test_errors ();
  test_sizes ();
  test_set_name ();
  test_get_hints ();
  test_hints_at_the_end ();
  test_set_hints ();
  test_hints_fit ();
  test_mend_hints ();
  test_is_hint ();
  test_all_errors ();
  test_lengths ();
  return 0;
}
