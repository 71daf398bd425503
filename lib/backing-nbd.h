/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A backing file that is read over NBD, whoever is at the other end.
 */

#ifndef ADDCOW_BACKING_NBD_H
#define ADDCOW_BACKING_NBD_H

#include "backing.h"
#include "error.h"
#include "nbd-client.h"

/* Open what PEER, who is owned from then on and closed if this fails,
 * serves.  NAME is for messages.  Otherwise as backing_open.
 */
int backing_nbd_open_peer (struct backing **backing, struct nbd_peer *peer,
                           const char *name,
                           const struct backing_options *options,
                           struct failure *failure);

#endif /* ADDCOW_BACKING_NBD_H */
