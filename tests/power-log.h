/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The log of what power-log.c sees programs do to files, and of what clients
 * of a server ask for: all in one order, so that one can tell from it what a
 * power failure at any moment might leave.
 *
 * The log is a file of records, one behind the other.  A record is a struct
 * power_record, then NAME_BYTES and NEW_NAME_BYTES of two names, each with
 * its NUL or empty, then PAYLOAD_BYTES, then zeroes so that its whole length,
 * TOTAL_BYTES, is a multiple of 8.  All numbers are the machine's own.  Each
 * is written by one write(2) to a file opened with O_APPEND, so the records
 * of all threads and processes have one order.  A program that is killed may
 * leave a record that is cut short at a multiple of 8, and that others follow:
 * what it was to tell of was not done.
 *
 * Everything that is done has two records with the same ID: one of its KIND
 * just before it begins, and a POWER_END after it.  Between the two it may
 * have happened or not, in part or whole; where the second is missing the
 * program ended within.
 *
 * - A change of a file (POWER_WRITE, POWER_ALLOCATE, POWER_LENGTH) may be on
 *   the medium from its first record on, every sector of it by itself.
 * - A sync that ends with RESULT 0 covers those changes of its file whose
 *   POWER_END stands before its own first record, and of the others nothing.
 * - POWER_WRITE_OUT is no sync: it promises nothing.
 * - A change of names (POWER_CREATE, POWER_RENAME, POWER_LINK, POWER_UNLINK)
 *   may be on the medium from its first record on, and is there for certain
 *   when a sync of its folder covers it: such a POWER_SYNC has FOLDER set.
 *
 * A file is known by its inode, FILE, whatever its names; after the last
 * name of a file is gone another one may get its number, with a POWER_CREATE.
 * Names are relative to the folder that is watched ("." itself); one that is
 * outside of it is empty.
 *
 * What of this is needed to read a log is in this header; who writes a log
 * of his own, as clients do, opens it with power_log_open and uses
 * power_log_put.
 */

#ifndef ADDCOW_POWER_LOG_H
#define ADDCOW_POWER_LOG_H

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* In the environment of who preloads power-log.c: the log, and the folder,
 * both absolute.  The log is not in the folder.
 */
#define POWER_LOG "POWER_LOG"
#define POWER_FOLDER "POWER_FOLDER"

/* Optional: how many microseconds a sync takes at least, for files on what
 * syncs in no time.
 */
#define POWER_SYNC_US "POWER_SYNC_US"

enum power_kind {
  /* RESULT: what the call returned (of a POWER_WRITE the bytes that are
   * written), or the negative errno.  FILE is set where it was not known
   * before: of POWER_CREATE.
   */
  POWER_END = 1,

  /* Of files.  NAME is one that the file had then. */
  POWER_WRITE,     /* the payload goes to OFFSET; COUNT is its length */
  POWER_ALLOCATE,  /* fallocate of COUNT bytes at OFFSET with MODE */
  POWER_LENGTH,    /* ftruncate, or open with O_TRUNC: OFFSET is the length */
  POWER_SYNC,      /* fsync, fdatasync */
  POWER_WRITE_OUT, /* sync_file_range of COUNT bytes at OFFSET */

  /* Of names. */
  POWER_CREATE, /* NAME, a new file of length 0 */
  POWER_RENAME, /* of FILE, NAME to NEW_NAME, MODE: the flags of renameat2 */
  POWER_LINK,   /* of FILE, which has NAME, as NEW_NAME too */
  POWER_UNLINK, /* of FILE: NAME goes */

  /* Of a client of a server: a request of the kind MODE (power_op) with
   * the flag FUA, for COUNT bytes at OFFSET; the payload of a write.
   * RESULT: 0, or the negative errno.
   */
  POWER_REQUEST,

  /* What somebody found while no program had the files open: FILE has the
   * payload at OFFSET.  No POWER_END.
   */
  POWER_CONTENT,

  /* All programs that logged before are gone; a server that was killed, for
   * instance.  What then is in the files stands before in POWER_CONTENT.
   * No POWER_END.
   */
  POWER_RESTART,
};

enum power_op {
  POWER_OP_READ,
  POWER_OP_WRITE,
  POWER_OP_ZERO,
  POWER_OP_TRIM,
  POWER_OP_FLUSH,
};

#define POWER_MAGIC UINT64_C (0x676f6c5f7265776f)

struct power_record {
  uint64_t magic; /* POWER_MAGIC */
  uint64_t total_bytes;
  uint64_t id; /* the process in the upper half */
  uint32_t kind;
  uint32_t mode;
  uint32_t fua;
  uint32_t folder;
  uint64_t file;
  uint64_t offset, count;
  int64_t result;
  uint32_t name_bytes, new_name_bytes;
  uint64_t payload_bytes;
};

/* A log for power_log_put; -1 and errno as of open. */
static inline int
power_log_open (const char *path)
{
  return syscall (SYS_openat, AT_FDCWD, path,
                  O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
}

/* An ID that nothing else has. */
static inline uint64_t
power_log_id (void)
{
  static _Atomic uint32_t last;

  return (uint64_t) getpid () << 32 | ++last;
}

/* Append *RECORD, whose lengths are set here, with two names, each a string
 * or NULL, and PAYLOAD of PAYLOAD_BYTES.  The system calls are made directly
 * so that nobody sees them.  A log that cannot be written ends the program.
 */
static inline void
power_log_put (int log_fd, struct power_record *record, const char *name,
               const char *new_name, const void *payload,
               uint64_t payload_bytes)
{
  static const char zeroes[8];
  uint64_t bytes;

  record->magic = POWER_MAGIC;
  record->name_bytes = name ? strlen (name) + 1 : 0;
  record->new_name_bytes = new_name ? strlen (new_name) + 1 : 0;
  record->payload_bytes = payload_bytes;
  bytes = sizeof *record + record->name_bytes + record->new_name_bytes +
          payload_bytes;
  record->total_bytes = (bytes + 7) / 8 * 8;

  {
    const struct iovec iov[] = {
      { record, sizeof *record },
      { (void *) name, record->name_bytes },
      { (void *) new_name, record->new_name_bytes },
      { (void *) payload, payload_bytes },
      { (void *) zeroes, record->total_bytes - bytes },
    };
    const long r = syscall (SYS_writev, log_fd, iov, 5);

    if (r < 0 || (uint64_t) r != record->total_bytes)
      abort ();
  }
}

/* The POWER_END of ID. */
static inline void
power_log_end (int log_fd, uint64_t id, uint64_t file, int64_t result)
{
  struct power_record end = {
    .id = id,
    .kind = POWER_END,
    .file = file,
    .result = result,
  };

  power_log_put (log_fd, &end, NULL, NULL, NULL, 0);
}

/* What stands behind a RECORD that was read. */
static inline const char *
power_name (const struct power_record *record)
{
  return record->name_bytes ? (const char *) (record + 1) : "";
}

static inline const char *
power_new_name (const struct power_record *record)
{
  const char *names = (const char *) (record + 1);

  return record->new_name_bytes ? names + record->name_bytes : "";
}

static inline const uint8_t *
power_payload (const struct power_record *record)
{
  return (const uint8_t *) (record + 1) + record->name_bytes +
         record->new_name_bytes;
}

#endif /* ADDCOW_POWER_LOG_H */
