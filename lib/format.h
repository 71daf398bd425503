/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The bytes of an add-cow metadata file, version 1.
 *
 * All numbers are big-endian.
 *
 *   byte  size  field
 *      0     8  magic: "ADD_COW" and 0xff
 *      8     4  version: 1
 *     12  1024  backing_file: NUL-terminated name; empty: there is no
 *               backing file, unallocated sectors read as zeroes
 *   1036  1024  image_file: NUL-terminated name; empty: whoever opens
 *               the overlay knows where the image is
 *   2060     8  size of the virtual disk in bytes, a multiple of 512
 *               and less than 2^63
 *   2068     n  bitmap, n = ceil (size / 4096) bytes: sector s of the
 *               disk is bit s % 8 (1 << s % 8) of byte s / 8; the bit is
 *               1 when the sector is allocated, which means it is read
 *               from the image file
 *
 * Bits past the last sector and bytes past the bitmap mean nothing.  A
 * file shorter than header and bitmap is truncated.
 *
 * What follows the NUL of image_file is written as zeroes and is never
 * read.  What follows that of backing_file, unless the name is empty, may
 * be hints about the backing file: strings KEY=VALUE, each ended by a NUL,
 * the last one followed by an empty string.
 *
 *   format=FORMAT   what its bytes are: "raw", "add-cow", or the name that
 *                   QEMU has for a format; 1 to 31 of A-Z a-z 0-9 _ -
 *   size=BYTES      its length when the overlay was made on it, or was last
 *                   committed to it, decimal, less than 2^63
 *   mtime=NS        when it had been modified then, in ns since 1970,
 *                   decimal, perhaps with a "-" before it, from -2^63 to
 *                   2^63 - 1
 *
 * Of a local file, whatever its format, size is that of the file and not
 * of the disk in it; of a block device its length, without mtime; of a URI
 * the length of the disk, without mtime.
 *
 * No hint makes a file unreadable.  The strings are read up to the first
 * empty one or the end of the field; what has no NUL before that end is
 * no string.  A string with another key, or a value that is not as above,
 * is skipped.  Of those that are left, the first with a key counts.
 *
 * The format was proposed for QEMU in 2011 ("add-cow", Dong Xu Wang);
 * files made by that driver are read, and ours, if they have no hints, are
 * byte for byte what it would have made.  It wrote zeroes where hints are
 * and did not read them.
 *
 * Nothing here does I/O, takes a lock or keeps state.
 */

#ifndef ADDCOW_FORMAT_H
#define ADDCOW_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#define FORMAT_SECTOR_BYTES 512
#define FORMAT_NAME_BYTES 1024 /* with the NUL */
#define FORMAT_HEADER_BYTES 2068
#define FORMAT_VERSION 1
#define FORMAT_VERSION_END 12 /* offsets of what follows in the header */
#define FORMAT_BACKING_OFFSET 12

#define FORMAT_MAGIC "ADD_COW\xff"
#define FORMAT_MAGIC_BYTES 8

struct header {
  char backing_file[FORMAT_NAME_BYTES]; /* and its hints */
  char image_file[FORMAT_NAME_BYTES];
  uint64_t size_bytes;
};

/* Read BUF, the first FORMAT_HEADER_BYTES of a file, into *HEADER.
 *
 * Returns 0, ADDCOW_E_MAGIC, ADDCOW_E_VERSION, ADDCOW_E_BACKING_NAME,
 * ADDCOW_E_IMAGE_NAME, ADDCOW_E_SIZE_LARGE or ADDCOW_E_SIZE_SECTORS,
 * the first that applies.  On error *HEADER is undefined.
 */
int format_decode (const uint8_t buf[FORMAT_HEADER_BYTES],
                   struct header *header);

/* All errors of BUF into ERRORS, in the order in which format_decode looks
 * for them.  Where the magic or the version is wrong there are no others, for
 * then the rest may be anything.  Returns how many; 0: it is valid.
 */
#define FORMAT_MAX_ERRORS 3
unsigned format_errors (const uint8_t buf[FORMAT_HEADER_BYTES],
                        int errors[FORMAT_MAX_ERRORS]);

/* Write *HEADER, which must be valid, into BUF.  What follows the NUL of
 * backing_file is kept, be it known hints or not; what follows that of
 * image_file becomes zero.
 */
void format_encode (const struct header *header,
                    uint8_t buf[FORMAT_HEADER_BYTES]);

/* The size field alone: where it is, and SIZE_BYTES as it is there. */
#define FORMAT_SIZE_OFFSET 2060
#define FORMAT_SIZE_BYTES 8
void format_encode_size (uint64_t size_bytes, uint8_t buf[FORMAT_SIZE_BYTES]);

/* Copy NAME into FIELD, backing_file or image_file of a header, and make
 * the rest of it zero: there are no hints then.  Returns 0, or
 * ADDCOW_E_NAME_LONG when it does not fit with its NUL.
 */
int format_set_name (char field[FORMAT_NAME_BYTES], const char *name);

/* What a header says about its backing file besides the name. */
#define FORMAT_HINT_BYTES 32 /* of a format, with the NUL */
struct hints {
  char format[FORMAT_HINT_BYTES]; /* empty: no hint */
  bool has_size, has_mtime;
  uint64_t size_bytes;
  int64_t mtime_ns; /* since 1970 */
};

/* Read the hints of *HEADER, which must be valid, into *HINTS. */
void format_get_hints (const struct header *header, struct hints *hints);

/* What can be wrong with the hints of a header, as bits. */
#define FORMAT_HINT_NO_KEY (1 << 0) /* a string is not KEY=VALUE */
#define FORMAT_HINT_VALUE (1 << 1)  /* the value of a known key is not valid */
#define FORMAT_HINT_TWICE (1 << 2)  /* a known key comes again */
#define FORMAT_HINT_NO_END (1 << 3) /* the last string has no NUL */
#define FORMAT_HINT_TRAILING (1 << 4) /* not all zero behind the empty one */

/* Which of these are wrong in *HEADER, which must be valid.  A list of
 * strings that fills the field, with no room for the empty one, is not.
 */
unsigned format_check_hints (const struct header *header);

/* Keep of the hints of *HEADER, which must be valid, what is not wrong, be
 * the keys known or not, in the order that it has.  What format_get_hints
 * reads is the same then.
 */
void format_mend_hints (struct header *header);

/* Write *HINTS behind the name of the backing file in *HEADER, which is
 * not empty, in place of all that is there.  Returns 0, or
 * ADDCOW_E_HINTS_LONG when they do not fit; *HEADER is as it was then.
 */
int format_set_hints (struct header *header, const struct hints *hints);

/* Give the hints of *HEADER about size and mtime, hidden or not, the values in
 * *NOW, where both have them.  All other strings stay, in their order.  One
 * that has no room any more is left out.
 */
void format_update_hints (struct header *header, const struct hints *now);

/* The same, but no string moves: a number that is shorter gets zeroes before
 * it, and what is longer, or not in *NOW, is hidden.
 */
void format_update_hints_in_place (struct header *header,
                                   const struct hints *now);

/* Hide the hints of *HEADER about size and mtime: the first letter of each
 * becomes a "-", which makes it a string with another key, as long as it was.
 * This is what they are while they change.
 */
void format_hide_hints (struct header *header);

/* Can TEXT be the format in a hint? */
bool format_is_hint (const char *text);

/* Is SIZE_BYTES a size that a disk may have?  Returns 0,
 * ADDCOW_E_SIZE_LARGE or ADDCOW_E_SIZE_SECTORS.
 */
int format_check_size (uint64_t size_bytes);

/* The length of the bitmap, and of header and bitmap together, of a
 * disk of SIZE_BYTES, a valid size.
 */
uint64_t format_bitmap_bytes (uint64_t size_bytes);
uint64_t format_file_bytes (uint64_t size_bytes);

#endif /* ADDCOW_FORMAT_H */
