/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Chains: backing files that are overlays themselves.
 *
 * Each overlay of a chain is opened while the one above is, and where that
 * stands is a list on the callers' stacks.
 */

#ifndef ADDCOW_BACKING_ADDCOW_H
#define ADDCOW_BACKING_ADDCOW_H

#include <sys/stat.h>

/* How many overlays there may be in a row.  Each takes stack, some hundred
 * bytes to be opened and as much to be read through, and two descriptors or
 * more: with so many a thread's stack of 8 MiB is used for a small part,
 * and who wants a chain of such a length has to raise the limit of
 * descriptors that is usual.
 */
#define CHAIN_MAX 1024

/* One that waits for its backing file to be opened. */
struct chain {
  const struct chain *above; /* whose backing file it is, or NULL */
  unsigned length;           /* down to this one */
  struct chain_file {
    dev_t dev;
    ino_t ino;
  } metadata, image; /* image: all zero if it is no local file */
};

/* Fill *LINK for an overlay under ABOVE.  IMAGE_FD may be -1.  Returns 0 or
 * an errno.
 */
int chain_link (struct chain *link, const struct chain *above, int metadata_fd,
                int image_fd);

/* May one more overlay be opened under CHAIN, which may be NULL?  Returns
 * 0 or ADDCOW_E_CHAIN_LONG.
 */
int chain_check_length (const struct chain *chain);

/* May METADATA_FD be the metadata file of that one?  Returns 0,
 * ADDCOW_E_CHAIN_LOOP, ADDCOW_E_IMAGE_IS_METADATA if it is what one above
 * writes to, or an errno.
 */
int chain_check_file (const struct chain *chain, int metadata_fd);

/* May BACKING, which is open, and all that is below it be opened under CHAIN?
 * Returns 0, ADDCOW_E_CHAIN_LONG, or as chain_check_file.
 */
struct backing;
int chain_check_below (const struct chain *chain,
                       const struct backing *backing);

/* Open what is at LOCATION, with OPTIONS, as a backing file: its header alone
 * says where its files are and what they are.  Otherwise as disk_open.
 */
struct disk;
struct disk_options;
struct failure;
struct location;
int backing_addcow_open_disk (struct disk **disk,
                              const struct location *location,
                              const struct disk_options *options,
                              struct failure *failure);

#endif /* ADDCOW_BACKING_ADDCOW_H */
