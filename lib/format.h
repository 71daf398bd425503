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
 * The format was proposed for QEMU in 2011 ("add-cow", Dong Xu Wang);
 * files made by that driver are read, and ours are byte for byte what it
 * would have made.
 *
 * Nothing here does I/O, takes a lock or keeps state.
 */

#ifndef ADDCOW_FORMAT_H
#define ADDCOW_FORMAT_H

#include <stdint.h>

#define FORMAT_SECTOR_BYTES 512
#define FORMAT_NAME_BYTES 1024 /* with the NUL */
#define FORMAT_HEADER_BYTES 2068
#define FORMAT_VERSION 1

#define FORMAT_MAGIC "ADD_COW\xff"
#define FORMAT_MAGIC_BYTES 8

struct header {
  char backing_file[FORMAT_NAME_BYTES];
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

/* Write *HEADER, which must be valid, into BUF.  What follows the NUL
 * of a name becomes zero.
 */
void format_encode (const struct header *header,
                    uint8_t buf[FORMAT_HEADER_BYTES]);

/* Copy NAME into FIELD, backing_file or image_file of a header.
 * Returns 0, or ADDCOW_E_NAME_LONG when it does not fit with its NUL.
 */
int format_set_name (char field[FORMAT_NAME_BYTES], const char *name);

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
