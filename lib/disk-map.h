/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which file each byte of a disk is read from, down a chain of overlays.
 *
 * That is for who wants to know where things are; what is to be sent to
 * clients are the extents of overlay.h, which have no depth.
 */

#ifndef ADDCOW_DISK_MAP_H
#define ADDCOW_DISK_MAP_H

#include <stdbool.h>
#include <stdint.h>

struct disk;
struct failure;

struct map_extent {
  uint64_t offset, count; /* bytes of the disk; COUNT is at least 1 */

  /* 0: the image, 1: the backing file, or, if that is an overlay, its
   * image; and so on.
   */
  unsigned depth;

  /* A file has this: FILE_NAME, which lives as long as the disk.  Else the
   * overlay of this depth has no backing file, or a shorter one, and FILE_NAME
   * is NULL.
   */
  bool present;
  const char *file_name;

  bool zero; /* reads as zeroes */
  bool data; /* is there, not a hole; perhaps zeroes */

  /* The file is raw: it has this at the same offset. */
  bool in_place;
};

/* Returns 0 to go on, or EXTENT_STOP (image.h). */
typedef int map_fn (void *opaque, const struct map_extent *extent);

/* Call FN for all of DISK, without gaps, equal neighbours as one.  DISK was
 * opened with its backing file, and its image is a local file.  May block,
 * takes no lock, needs memory for some extents.  What others write to the disk
 * meanwhile may be seen or not.  Returns 0, EXTENT_STOP, or an error number
 * and in *FAILURE, which was empty, the file that it happened to.
 */
int disk_map (struct disk *disk, map_fn *fn, void *opaque,
              struct failure *failure);

/* The same for a range of whole sectors of a DISK that is the backing file,
 * DEPTH down, of another one.  Neighbours may be equal.
 */
int disk_map_below (struct disk *disk, uint64_t count, uint64_t offset,
                    unsigned depth, map_fn *fn, void *opaque,
                    struct failure *failure);

#endif /* ADDCOW_DISK_MAP_H */
