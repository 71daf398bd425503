/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A metadata file from the bytes of an input, in a scratch folder with other
 * files that it may name.
 *
 *   bytes
 *      1   flags of the target
 *      1   n
 *      n   what is left for the target: disk_input.ops
 *      1   0: all the rest is the file, from its first byte on; else
 *      8   size of the disk
 *      1   signed: by so much the file is longer than it has to be
 *      2   length of what follows, at most 1024
 *          backing_file with what is behind its NUL
 *          image_file up to a NUL
 *          pieces of the file, to the end of the input: 8 bytes, where it is
 *          behind the header, modulo the length; 1 byte, its length; itself
 *
 * Numbers are big-endian, and what is missing is zero.
 *
 * In the folder are base.img (64 KiB), vm.raw and mid.add-cow (an overlay of
 * base.img without a bit set), loop.add-cow (a link to what is made here),
 * and links that lead out of it.  What a name leads to outside is not opened,
 * nor are servers or children asked, see backing_of_input.
 */

#ifndef ADDCOW_DISK_INPUT_H
#define ADDCOW_DISK_INPUT_H

#include "backing.h"
#include "fuzz.h"

struct disk_input {
  unsigned flags;
  struct input ops;

  const char *folder;
  const char *path; /* of the metadata file */
  int fd;           /* of it, for writing; the input's */
  uint64_t length_bytes;
};

/* Of byte 0; the others are the target's. */
#define DISK_INPUT_REAL_BACKING (1 << 7) /* local files may be opened */

/* Make it from the SIZE bytes DATA.  *INPUT is valid until the next one. */
void disk_input_make (struct disk_input *input, const uint8_t *data,
                      size_t size);

/* What byte OFFSET of base.img is, and of every other backing file. */
uint8_t backing_byte (uint64_t offset);

/* How long a backing file is that is none of the folder's. */
#define FAKE_BACKING_BYTES (1024 * 1024 + 100)

#endif /* ADDCOW_DISK_INPUT_H */
