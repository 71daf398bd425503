/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Who may be at the other end of an NBD connection, see nbd-client.h.
 */

#ifndef ADDCOW_NBD_PEERS_H
#define ADDCOW_NBD_PEERS_H

#include <stdbool.h>

#include "backing.h"
#include "error.h"
#include "names.h"
#include "nbd-client.h"

/* The server at LOCATION, a URI for which backing_nbd_takes says yes.  On
 * success *PEER is the caller's.  Connects to nobody.  Returns 0, or an errno
 * and *FAILURE.  In backing-nbd.c.
 */
int nbd_peer_of_uri (struct nbd_peer **peer, const struct location *location,
                     struct failure *failure);

/* A qemu-nbd that serves what is at LOCATION, read-only unless WRITABLE, and
 * is not started before it is connected to.  Likewise.  In backing-qemu.c.
 */
int nbd_peer_of_qemu (struct nbd_peer **peer, const struct location *location,
                      const struct backing_options *options, bool writable,
                      struct failure *failure);

#endif /* ADDCOW_NBD_PEERS_H */
