/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Backing files that many overlays of a process have in common: what several
 * of them name is opened once, by backing_open with a pool in its options.
 *
 * What is shared
 * --------------
 * Whoever opens a backing file in a pool gets a struct backing of his own, a
 * user of what is shared: the open file, the connection to an NBD server and
 * what is known of its extents, the qemu-nbd, or, for a backing file that is an
 * overlay, its metadata, its image and its own backing file, which is opened
 * in the same pool.  The last user that is closed closes that too, and waits
 * for it.  The operations of a user that have NULL where the kind of backing
 * file has it are NULL as well.
 *
 * Two have a backing file in common when it is opened in the same way (format,
 * timeout, locks, confinement) and is the same: a local file by what its name
 * leads to, so that another file in its place is another backing file, and one
 * that is longer by now too, and a URI by its letters.  Of an overlay and of a
 * file that QEMU reads the folder that their names are relative to counts as
 * well; what those names lead to is looked up when it is opened, and not again
 * for who shares it.
 *
 * Opening
 * -------
 * One opens, which may take as long as the timeout; others who want the same
 * wait for that, and what it comes to is their result too.  Who comes when it
 * has failed tries anew.  What failed because of who tried (which overlays
 * are above, which files somebody writes to) says nothing about others: each of
 * them tries himself.  Who wants something else is not kept waiting.
 *
 * What a chain of overlays must not be (backing-addcow.h) is refused to who
 * joins one as to who opens it.  Who would wait for somebody that waits for
 * him, because overlays are backing files of each other, does not; he opens
 * it for himself, as if there were no pool, which then says what is wrong.
 *
 * Interrupting
 * ------------
 * What a user that was interrupted begins to read fails with EIO at once, and
 * nobody else notices.  What he was reading goes on, for as long as a server
 * that was lost is waited for (the timeout), while there is a user that was not
 * interrupted: they share the connection.  When all users are interrupted, or
 * closed, so is what they share, and what they were reading fails soon.  From
 * then on who opens the same gets another one.
 *
 * Locks
 * -----
 * pool->lock protects the list of what is shared and who uses it.  It is taken
 * last, and not held over I/O, nor while anything is opened, interrupted or
 * closed.  Reading takes no lock.
 */

#ifndef ADDCOW_BACKING_POOL_H
#define ADDCOW_BACKING_POOL_H

#include "backing.h"

struct backing_pool;

/* Make *POOL, freed by backing_pool_free.  What is opened in it is told of by
 * LOG with LOG_OPAQUE (see struct backing_options), whoever opened it first,
 * and not by his; NULL: not at all.  Returns 0 or ENOMEM.
 */
int backing_pool_new (struct backing_pool **pool,
                      void (*log) (void *opaque, const char *name,
                                   const char *text),
                      void *log_opaque);

/* All that was opened in POOL is closed; NULL is ignored. */
void backing_pool_free (struct backing_pool *pool);

/* As backing_open, in the pool of OPTIONS, for which it is called.  Takes the
 * pool's lock; may wait as long as opening takes two of them, who close and who
 * open.
 */
struct location;
struct failure;
int backing_pool_open (struct backing **backing,
                       const struct location *location,
                       const struct backing_options *options,
                       struct failure *failure);

#endif /* ADDCOW_BACKING_POOL_H */
