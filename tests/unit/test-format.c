/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The bytes of the header: what is written, what is read, what is refused
 * and in which order.
 */

#include <config.h>

#include "check.h"
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
  strcpy (header.backing_file, "base.img");
  strcpy (header.image_file, "vm.raw");
  header.size_bytes = VALID_SIZE;
  memset (got, 0xee, sizeof got);
  format_encode (&header, got);
  CHECK (memcmp (got, want, sizeof got) == 0);

  /* No backing file, no image, no size. */
  header.backing_file[0] = header.image_file[0] = '\0';
  header.size_bytes = 0;
  memset (want + 12, 0, sizeof want - 12);
  format_encode (&header, got);
  CHECK (memcmp (got, want, sizeof got) == 0);
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
  test_decode ();
  test_round_trip ();
  test_first_error_that_applies ();
  test_errors ();
  test_sizes ();
  test_set_name ();
  test_lengths ();
  return 0;
}
