/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A model of the engine, for spin: who may write what and when, and what a
 * power failure leaves.  tests/test-spin.sh has it checked in all of its
 * states; lib/overlay.h and lib/map.h say in words what it says here.
 *
 * What is modelled
 * ----------------
 * overlay.c, a step for each access to what others see:
 *
 *   overlay_write, overlay_zero    change: all_allocated, rewrite,
 *                                  write_fua, write_allocated, first_touch,
 *                                  write_completed, complete_sector
 *   overlay_fill, overlay_keep     fill_sectors, fill_held
 *   overlay_flush, overlay_commit  flush_without_commit, shared_commit,
 *                                  run_commit_locked, commit,
 *                                  flush_for_commit, rewrite_uncommitted,
 *                                  tell_failures, fail_if_others_did
 *
 * and what they use of map.c (map_set, map_freeze, map_write_frozen,
 * map_thaw, map_uncommitted, map_synced) and range-lock.c.
 *
 * The disk has three sectors, in one page of the map.  The first sector is
 * two units, so that a part of it can be written; each other one is one.
 * What a unit holds is a number that says who wrote it.
 *
 * Left out: the end of the backing file (overlay_drop_backing), images that
 * flush for themselves alone, more than one page.  A trim of what is
 * allocated leaves it undefined, and any other is a write of zeroes.
 *
 * The medium
 * ----------
 * Power can go in every state.  So there is no step for it: each unit of
 * the image has the set of all that may be on its medium, each bit of the
 * metadata file likewise, each by itself.  To write adds to the set; a
 * flush that succeeds leaves what was there when it began, and what was
 * written since.  The monitor looks whether all of these are right.
 *
 * When the system cannot write a sector it tells that once, to the flush
 * that ends next, and takes the sector for written: only when it is written
 * again does a flush make something of it.
 *
 * What a life begins with covers what the one before can have left: bits
 * and data on disk, or written by who was killed before the metadata file was
 * synced.
 *
 * What must hold
 * --------------
 * - Who reads gets what was written last, or what is being written.
 * - After a power failure a unit has what the last flush or write with FUA
 *   that succeeded was about, or what was written or sent later.
 * - What the system told that it could not write, and what nobody has
 *   written since, has what it had or was to have.  Of two flushes at a time
 *   that are no commits one may have the system's answer for both.
 * - All come to an end.
 */

/*--- What is run; the script sets these. ------------------------------*/

/* Kinds of requests. */
#define WHOLE 1
#define PART 2
#define FUA 4     /* may be added to a write */
#define FLUSH 8
#define FILL 16
#define COMMIT 32 /* what the committer does */
#define MUST_FUA 64

/* What client N does: so many requests, of these kinds. */
#ifndef KINDS0
#define KINDS0 (WHOLE | PART)
#define REQUESTS0 1
#endif
#ifndef KINDS1
#define KINDS1 FILL
#define REQUESTS1 1
#endif
#ifndef KINDS2
#define KINDS2 FLUSH
#define REQUESTS2 1
#endif
#ifndef CLIENTS
#define CLIENTS 3
#endif

/* Which ranges are asked for: all, or the first and the last sector. */
#ifndef RANGES
#define RANGES 3
#endif

/* How often the system fails to write a sector, and a commit to write or
 * sync the metadata file.
 */
#ifndef IMAGE_FAULTS
#define IMAGE_FAULTS 0
#endif
#ifndef METADATA_FAULTS
#define METADATA_FAULTS 0
#endif

/* How a sector may begin: a bit for each of these. */
#define CLEAR 1
#define ALLOCATED 2
#define KILLED 4 /* its bit is in the metadata file, which is not synced */
#ifndef BEGIN
#define BEGIN CLEAR
#endif

/*--- Numbers and sets. ------------------------------------------------*/

#define NR_UNITS 4
#define UNITS 15
#define SECTORS 7
#define SECTOR_OF(u) ((u) < 2 -> 0 : (u) - 1)
#define BIT(n) (1 << (n))
#define SECTORS_OF(units) (((units) & 3 -> 1 : 0) | (((units) >> 1) & 6))
#define UNITS_OF(sectors) (((sectors) & 1 -> 3 : 0) | (((sectors) & 6) << 1))

/* What a unit can hold. */
#define BASE 0
#define GARBAGE 1 /* the image, below a bit that is clear */
#define OLD 2
#define VALUE(client, n) (3 + 2 * (client) + (n))

#define EACH_UNIT(code)                                                      \
  u = 0; do :: u < NR_UNITS -> code; u++ :: else -> break od; u = 0
#define EACH_CLIENT(code)                                                    \
  c = 0; do :: c < CLIENTS -> code; c++ :: else -> break od; c = 0
#define EACH(units, code)                                                    \
  EACH_UNIT (if :: (units) & BIT (u) -> code :: else fi)

hidden byte u, c;

/*--- The system: image and metadata file, their caches and media. -----*/

byte cur[NR_UNITS];          /* what reading the image gives */
short medium[NR_UNITS];      /* the set of what may be on its medium */
byte dirty;                  /* sectors that are to be written */
bool error;                  /* is to be told */
byte image_faults;

/* A flush by each client: the sectors that it is about, and what is on the
 * medium when it is over.
 */
bool in_flush[CLIENTS];
byte covered[CLIENTS];
short after[CLIENTS * NR_UNITS];

byte file_bits;              /* what reading the metadata file gives */
byte may_be_0, may_be_1;     /* on its medium */
bool file_dirty;
byte metadata_faults;

/* Sectors that the system could not write: not told yet; told to a flush or
 * to a commit that has not counted it; counted.
 */
byte lost, lost_to_flush, lost_to_commit, lost_counted;

/* Of flushes and FUA writes that are not over: durable, if they succeed, and
 * the units that they are about.
 */
short promised[CLIENTS * NR_UNITS];
byte promises[CLIENTS];
byte at_risk[CLIENTS];       /* units that another may be told of, */
byte unsure[CLIENTS];        /* or was, by a flush that is no commit */

inline image_write (units, value)
{
  EACH (units, cur[u] = value; image_wrote (u));
}

inline image_wrote (unit)
{
  medium[unit] = medium[unit] | BIT (cur[unit]);
  EACH_CLIENT (
    if
    :: in_flush[c] ->
       after[c * NR_UNITS + unit] =
           after[c * NR_UNITS + unit] | BIT (cur[unit])
    :: else
    fi);
  dirty = dirty | BIT (SECTOR_OF (unit));
  not_lost (BIT (SECTOR_OF (unit)))
}

inline image_flush_begin (me)
{
  in_flush[me] = true;
  covered[me] = dirty;
  EACH_UNIT (after[me * NR_UNITS + u] = BIT (cur[u]))
}

inline image_flush_end (me, for_commit, failed)
{
  failed = error;
  error = false;
  if
  :: failed -> lost_is_told (me, for_commit)
  :: else ->
     EACH (UNITS_OF (covered[me]),
           medium[u] = medium[u] & after[me * NR_UNITS + u]);
     /* What was written since is to be written still. */
     dirty = dirty & ~covered[me];
     EACH (UNITS_OF (covered[me]),
           if
           :: after[me * NR_UNITS + u] != BIT (cur[u]) ->
              dirty = dirty | BIT (SECTOR_OF (u))
           :: else
           fi)
  fi;
  in_flush[me] = false;
  covered[me] = 0;
  EACH_UNIT (after[me * NR_UNITS + u] = 0)
}

/* One sector will do: what is right is asked of each by itself. */
inline image_fault (sector)
{
  dirty = dirty & ~BIT (sector);
  EACH_CLIENT (covered[c] = covered[c] & ~BIT (sector));
  EACH_CLIENT (
    if
    :: promises[c] -> at_risk[c] = at_risk[c] | UNITS_OF (BIT (sector))
    :: else
    fi);
  error = true;
  lost = lost | BIT (sector)
}

proctype system ()
{
end:
  do
  :: d_step { image_faults > 0 && dirty & 1 -> image_faults--; image_fault (0) }
  :: d_step { image_faults > 0 && dirty & 2 -> image_faults--; image_fault (1) }
  :: d_step { image_faults > 0 && dirty & 4 -> image_faults--; image_fault (2) }
  od
}

inline file_write (new_bits)
{
  file_bits = new_bits;
  may_be_0 = may_be_0 | (SECTORS & ~(new_bits));
  may_be_1 = may_be_1 | (new_bits);
  file_dirty = true
}

inline file_sync ()
{
  if
  :: file_dirty ->
     may_be_0 = SECTORS & ~file_bits;
     may_be_1 = file_bits;
     file_dirty = false
  :: else
  fi
}

/*--- The map in memory, see map.h. ------------------------------------*/

byte bits;
bool page_dirty, page_frozen;
byte frozen_bits;
bool synced, found_lost;

/*--- What must hold. --------------------------------------------------*/

short readable[NR_UNITS];    /* what a read that begins now may give */
short sent[NR_UNITS];        /* of this what was not acknowledged */
short durable[NR_UNITS];     /* what a power failure may leave */

#define VISIBLE(unit)                                                        \
  (bits & BIT (SECTOR_OF (unit)) -> cur[unit] : BASE)

inline send (units, value)
{
  EACH (units,
        before[u] = readable[u] & ~sent[u];
        readable[u] = readable[u] | BIT (value);
        sent[u] = sent[u] | BIT (value);
        durable[u] = durable[u] | BIT (value);
        EACH_CLIENT (
          if
          :: promises[c] & BIT (u) ->
             promised[c * NR_UNITS + u] =
                 promised[c * NR_UNITS + u] | BIT (value)
          :: else
          fi))
}

inline acknowledge (units, value)
{
  EACH (units,
        readable[u] = readable[u] & ~before[u];
        sent[u] = sent[u] & ~BIT (value));
  EACH_UNIT (before[u] = 0)
}

inline promise (me, units)
{
  promises[me] = units;
  at_risk[me] = UNITS_OF (lost);
  unsure[me] = UNITS_OF (lost_to_flush);
  EACH (units, promised[me * NR_UNITS + u] = BIT (VISIBLE (u)) | sent[u])
}

inline promise_end (me, holds, units)
{
  EACH (promises[me],
        if
        :: holds && units & BIT (u) ->
           durable[u] = durable[u] & promised[me * NR_UNITS + u]
        :: else
        fi;
        promised[me * NR_UNITS + u] = 0);
  promises[me] = 0;
  at_risk[me] = 0;
  unsure[me] = 0
}

inline not_lost (sectors)
{
  lost = lost & ~(sectors);
  lost_to_flush = lost_to_flush & ~(sectors);
  lost_to_commit = lost_to_commit & ~(sectors);
  lost_counted = lost_counted & ~(sectors)
}

inline lost_is_told (me, for_commit)
{
  if
  :: for_commit -> lost_to_commit = lost_to_commit | lost
  :: else ->
     lost_to_flush = lost_to_flush | lost;
     EACH_CLIENT (
       if
       :: c != me -> unsure[c] = unsure[c] | at_risk[c]
       :: else
       fi)
  fi;
  EACH_CLIENT (at_risk[c] = 0);
  lost = 0
}

#define UNIT_IS_RIGHT(unit)                                                  \
  (BIT (VISIBLE (unit)) & readable[unit] &&                                  \
   (!(may_be_1 & BIT (SECTOR_OF (unit))) ||                                  \
    (medium[unit] & ~durable[unit]) == 0) &&                                 \
   (!(may_be_0 & BIT (SECTOR_OF (unit))) || durable[unit] & BIT (BASE)))

/* Goes on only when something is wrong. */
proctype monitor ()
{
end:
  !(UNIT_IS_RIGHT (0) && UNIT_IS_RIGHT (1) && UNIT_IS_RIGHT (2) &&
    UNIT_IS_RIGHT (3)) -> assert (false)
}

/*--- The range lock: range-lock.c. ------------------------------------*/

byte range[CLIENTS];         /* sectors, held or waited for */
byte waits_for[CLIENTS];     /* clients that came before */

inline range_append (me, sectors)
{
  EACH_CLIENT (
    if
    :: range[c] & (sectors) -> waits_for[me] = waits_for[me] | BIT (c)
    :: else
    fi);
  range[me] = sectors
}

inline range_acquire (me, sectors)
{
  d_step { range_append (me, sectors) };
  waits_for[me] == 0
}

inline range_release (me)
{
  range[me] = 0;
  EACH_CLIENT (waits_for[c] = waits_for[c] & ~BIT (me))
}

/*--- The map: map.c. --------------------------------------------------*/

#define UNCOMMITTED (page_dirty || page_frozen)

/* It marks the page first, without a gap for who holds map->lock. */
inline map_set (sectors)
{
  if
  :: (sectors) & ~bits -> page_dirty = true
  :: else
  fi;
  bits = bits | (sectors)
}

inline map_freeze ()
{
  if
  :: page_dirty ->
     page_dirty = false;
     page_frozen = true;
     frozen_bits = bits
  :: else
  fi
}

inline map_thaw (committed)
{
  if
  :: page_frozen && !(committed) -> page_dirty = true
  :: else
  fi;
#ifdef MUTANT_THAW_ALL
  page_dirty = page_dirty && !(committed);
#endif
  page_frozen = false;
  frozen_bits = 0
}

#ifdef MUTANT_BITS_OF_FLUSH
#define BITS_TO_WRITE bits
#else
#define BITS_TO_WRITE frozen_bits
#endif

inline sync_metadata (failed)
{
#ifdef MUTANT_NO_SYNC
  synced = true
#else
  atomic {
    if
    :: metadata_faults > 0 ->
       /* The system takes it for written. */
       metadata_faults--; failed = true; file_dirty = false;
       found_lost = !synced
    :: file_sync (); synced = true; found_lost = false
    fi
  }
#endif
}

inline map_write_frozen (failed)
{
  if
  :: page_frozen || !synced ->
#ifndef MUTANT_FORGET_FOUND
     d_step {
       if
       :: found_lost -> file_write (file_bits)
       :: else
       fi
     };
#endif
     if
     :: page_frozen ->
        atomic {
          if
          :: metadata_faults > 0 -> metadata_faults--; failed = true
          :: metadata_faults > 0 ->
             metadata_faults--; failed = true; file_write (BITS_TO_WRITE)
          :: file_write (BITS_TO_WRITE)
          fi
        }
     :: else
     fi;
     if
     :: !failed -> sync_metadata (failed)
     :: else
     fi
  :: else
  fi
}

/*--- Commit and flush: overlay.c. -------------------------------------*/

bool committing;
byte nr_started, nr_over;
byte nr_flushing, nr_unlocked;
byte nr_failures;
bool suspect;
byte told[CLIENTS];          /* image->nr_failures_told */

/* struct sharer. */
byte wanted[CLIENTS];        /* 0: waits for none */
bool over[CLIENTS];
bool over_failed[CLIENTS];
byte over_failures[CLIENTS];

inline count_failure ()
{
  suspect = true;
  d_step {
    nr_failures++;
    lost_counted = lost_counted | lost_to_flush | lost_to_commit;
    lost_to_flush = 0;
    lost_to_commit = 0
  }
}

inline flush_image (me, for_commit, failed)
{
  d_step { image_flush_begin (me) };
  d_step { image_flush_end (me, for_commit, failed) };
  if
  :: failed -> count_failure ()
  :: else
  fi
}

inline rewrite_sector (me, sector, first_unit, last_unit)
{
  if
  :: to_rewrite & BIT (sector) ->
     range_acquire (me, BIT (sector));
     d_step { read0 = cur[first_unit]; read1 = cur[last_unit] };
     d_step {
       cur[first_unit] = read0; image_wrote (first_unit);
       cur[last_unit] = read1; image_wrote (last_unit);
       read0 = 0; read1 = 0
     };
     d_step { range_release (me) }
  :: else
  fi
}

inline rewrite_uncommitted (me)
{
  nr_flushing == 0;
#ifndef MUTANT_REWRITE_AT_ONCE
  nr_unlocked == 0;
  range_acquire (me, SECTORS);
  d_step { range_release (me) };
#endif
  d_step { to_rewrite = (page_dirty -> bits & ~file_bits : 0) };
  rewrite_sector (me, 0, 0, 1);
  rewrite_sector (me, 1, 2, 2);
  rewrite_sector (me, 2, 3, 3);
  d_step { suspect = false; to_rewrite = 0 }
}

/* In: nothing.  Out: failed, failures. */
inline commit (me)
{
  failures = nr_failures;
#ifndef MUTANT_NO_REWRITE
  if
  :: suspect ->
     rewrite_uncommitted (me);
     failures = nr_failures
  :: else
  fi;
#endif
  d_step { map_freeze () };
#ifdef MUTANT_BITS_FIRST
  map_write_frozen (failed);
#endif
#ifndef MUTANT_NO_FLUSH
  flush_image (me, true, failed);
#endif
#ifndef MUTANT_FLUSHING_GOES_ON
  nr_flushing == 0;
#endif
#ifndef MUTANT_OTHERS_FAIL
  d_step {
    failed = failed || nr_failures != failures;
    failures = nr_failures
  };
#else
  failures = nr_failures;
#endif
#ifndef MUTANT_BITS_FIRST
  if
  :: !failed -> map_write_frozen (failed)
  :: else
  fi;
#endif
#ifdef MUTANT_FORGET_BITS
  d_step { map_thaw (true) }
#else
  d_step { map_thaw (!failed) }
#endif
}

#ifdef MUTANT_JOIN
#define WANTED (committing -> nr_started : nr_started + 1)
#else
#define WANTED (nr_started + 1)
#endif

inline run_commit (me)
{
  /* Here is gather_locked; others come. */
  nr_started++;
  commit (me);
  d_step {
    EACH_CLIENT (
      if
      :: wanted[c] > 0 && wanted[c] <= nr_started ->
         over[c] = true;
         over_failed[c] = failed;
         over_failures[c] = failures;
         wanted[c] = 0
      :: else
      fi);
    nr_over = nr_started;
    committing = false;
    failed = false;
    failures = 0
  }
}

/* Out: failed, failures. */
inline shared_commit (me)
{
  wanted[me] = WANTED;
  if
  :: over[me]
  :: d_step { !committing && !over[me] -> committing = true };
     run_commit (me)
  fi;
  d_step {
    failed = over_failed[me];
    failures = over_failures[me];
    over[me] = false;
    over_failed[me] = false;
    over_failures[me] = 0
  }
}

#ifdef MUTANT_UNSYNCED
#define IS_SYNCED true
#else
#define IS_SYNCED synced
#endif

/* Out: nothing, which stays false when there is something.  The order is
 * that of nothing_to_commit.
 */
inline nothing_to_commit ()
{
  epoch = nr_started;
  if
  :: epoch == nr_over ->
     if
     :: !UNCOMMITTED && IS_SYNCED ->
        nothing = !suspect
     :: else
     fi
  :: else
  fi
}

#ifdef MUTANT_NO_EPOCH
#define SAME_EPOCH true
#else
#define SAME_EPOCH (nr_started == epoch)
#endif

#ifdef MUTANT_UNTOLD
#define IS_TOLD false
#else
#define IS_TOLD true
#endif

inline overlay_flush (me)
{
  d_step {
    nr_flushing++;
    /* Who was not told of what is lost must be told now. */
    promise (me, (told[me] < nr_failures
                  -> UNITS
                  : UNITS & ~UNITS_OF (lost_counted)))
  };
  nothing_to_commit ();
  if
  :: nothing ->
     flush_image (me, false, failed);
     failures = nr_failures;
     nothing = SAME_EPOCH
  :: else
  fi;
  nr_flushing--;
  if
  :: !nothing -> shared_commit (me)
  :: else
  fi;
  /* tell_failures */
  d_step {
    failed = failed || (told[me] < failures && IS_TOLD);
    told[me] = (told[me] < failures -> failures : told[me]);
    promise_end (me, !failed,
                 (nothing -> UNITS & ~unsure[me] : UNITS));
    failed = false;
    failures = 0;
    nothing = false;
    epoch = 0
  }
}

inline overlay_commit (me)
{
  if
  :: UNCOMMITTED || suspect ->
     shared_commit (me);
     d_step { failed = false; failures = 0 }
  :: else
  fi
}

/*--- Writing: overlay.c. ----------------------------------------------*/

/* The data of a write; WITH_FLUSH is FUA. */
inline write_as_is (me, units, value, with_flush)
{
  d_step {
    image_write (units, value);
    if
    :: fua -> promise (me, units)
    :: else
    fi
  };
  if
  :: with_flush ->
     d_step { image_flush_begin (me) };
     d_step { image_flush_end (me, false, failed) }
  :: else
  fi
}

#ifdef MUTANT_SUSPECT_UNLOCKED
#define IS_SUSPECT false
#else
#define IS_SUSPECT suspect
#endif

inline write_allocated (me, units, value, with_flush)
{
  nr_unlocked++;
  if
  :: !IS_SUSPECT ->
     write_as_is (me, units, value, with_flush);
     nr_unlocked--
  :: else ->
     nr_unlocked--;
     range_acquire (me, SECTORS_OF (units));
     write_as_is (me, units, value, with_flush);
     d_step { range_release (me) }
  fi
}

inline rewrite (me, units, value)
{
  if
  :: fua ->
     nr_flushing++;
#ifdef MUTANT_FUA_ALONE
     epoch = nr_started;
     nothing = true;
#else
     nothing_to_commit ();
#endif
     write_allocated (me, units, value, nothing);
     if
     :: failed -> count_failure ()
     :: else -> nothing = nothing && SAME_EPOCH
     fi;
     nr_flushing--
  :: else ->
     write_allocated (me, units, value, false)
  fi
}

#define HAS_PART ((units & 3) == 1 || (units & 3) == 2)

#ifdef MUTANT_PART_UNLOCKED
#define IS_LOCKED !HAS_PART
#endif
#ifdef MUTANT_WHOLE_UNLOCKED
#define IS_LOCKED HAS_PART
#endif
#ifndef IS_LOCKED
#define IS_LOCKED true
#endif

/* The part of the first sector that is not written comes from the backing
 * file.
 */
inline write_completed (me, units, value)
{
#ifdef MUTANT_BITS_BEFORE_DATA
  d_step { map_set (SECTORS_OF (units)) };
#endif
  if
  :: HAS_PART && !(bits & 1) ->
     d_step {
       cur[0] = (units & 1 -> value : BASE); image_wrote (0);
       cur[1] = (units & 2 -> value : BASE); image_wrote (1)
     };
     if
     :: units & ~3 -> d_step { image_write (units & ~3, value) }
     :: else
     fi
  :: else -> d_step { image_write (units, value) }
  fi
}

inline first_touch (me, units, value)
{
  if
  :: IS_LOCKED -> range_acquire (me, SECTORS_OF (units))
  :: else
  fi;
  write_completed (me, units, value);
  d_step {
    map_set (SECTORS_OF (units));
    if
    :: fua -> promise (me, units)
    :: else
    fi
  };
  d_step { range_release (me) }
}

/* The request is over when FAILED or not; one that failed may have been
 * done or not, from then on.
 */
inline overlay_write (me, units, value)
{
  d_step {
    send (units, value);
    all = (bits & SECTORS_OF (units)) == SECTORS_OF (units);
    failures_before = nr_failures
  };
  if
  :: all -> rewrite (me, units, value)
  :: else -> first_touch (me, units, value)
  fi;
  if
  :: fua && !nothing && !failed -> shared_commit (me)
  :: else
  fi;
  d_step {
    /* fail_if_others_did */
    failed = failed || (fua && nr_failures != failures_before);
    if
    :: !failed -> acknowledge (units, value)
    :: else -> EACH_UNIT (before[u] = 0)
    fi;
    promise_end (me, !failed, (nothing -> UNITS & ~unsure[me] : UNITS));
    all = false;
    failed = false;
    failures = 0;
    failures_before = 0;
    nothing = false;
    epoch = 0
  }
}

/*--- Filling: overlay.c. ----------------------------------------------*/

/* The backing file was read before, without a lock. */
inline overlay_fill (me, units)
{
  if
  :: (bits & SECTORS_OF (units)) == SECTORS_OF (units)
  :: else ->
#ifndef MUTANT_FILL_UNLOCKED
     range_acquire (me, SECTORS_OF (units));
#endif
     to_fill = SECTORS_OF (units) & ~bits;
     d_step { image_write (UNITS_OF (to_fill), BASE) };
     d_step { map_set (to_fill); to_fill = 0 };
     d_step { range_release (me) }
  fi
}

/*--- Clients. ---------------------------------------------------------*/

inline choose_whole ()
{
  if
  :: units = 3
  :: RANGES >= 1 -> units = 7
  :: RANGES >= 2 -> units = 15
  :: RANGES >= 3 -> units = 12
  :: RANGES >= 4 -> units = 4
  :: RANGES >= 4 -> units = 8
  fi
}

inline choose_part ()
{
  if
  :: units = 1
  :: units = 2
  :: RANGES >= 2 -> units = 6
  :: RANGES >= 4 -> units = 14
  fi
}

inline choose_fua (kinds)
{
  if
  :: !(kinds & MUST_FUA) -> fua = false
  :: kinds & (FUA | MUST_FUA) -> fua = true
  fi
}

proctype client (byte me, kinds, nr_requests)
{
  short before[NR_UNITS];
  byte n, units, failures, failures_before, epoch, to_rewrite, to_fill;
  byte read0, read1;
  bool fua, all, nothing, failed;

  do
  :: n < nr_requests ->
     if
     :: atomic { kinds & WHOLE -> choose_whole (); choose_fua (kinds) };
        overlay_write (me, units, VALUE (me, n))
     :: atomic { kinds & PART -> choose_part (); choose_fua (kinds) };
        overlay_write (me, units, VALUE (me, n))
     :: kinds & FLUSH -> overlay_flush (me)
     :: kinds & COMMIT -> overlay_commit (me)
     :: atomic { kinds & FILL -> choose_whole () };
        overlay_fill (me, units)
     fi;
     d_step { n++; units = 0; fua = false }
  :: else -> break
  od;
  n = 0
}

/*--- How it begins. ---------------------------------------------------*/

inline begin_sector (sector)
{
  if
  :: BEGIN & CLEAR
  :: BEGIN & ALLOCATED -> bits = bits | BIT (sector)
  :: BEGIN & KILLED ->
     bits = bits | BIT (sector);
     killed = killed | BIT (sector)
  fi
}

init
{
  byte killed;

  atomic {
    begin_sector (0);
    begin_sector (1);
    begin_sector (2);
    synced = killed == 0;
    file_bits = bits;
    file_dirty = killed != 0;
    may_be_1 = bits;
    may_be_0 = (SECTORS & ~bits) | killed;
    EACH_UNIT (
      cur[u] = (bits & BIT (SECTOR_OF (u)) -> OLD : GARBAGE);
      medium[u] = BIT (cur[u]);
      readable[u] = BIT (VISIBLE (u));
      durable[u] = readable[u] |
                   (killed & BIT (SECTOR_OF (u)) -> BIT (BASE) : 0));
    killed = 0;
    image_faults = IMAGE_FAULTS;
    metadata_faults = METADATA_FAULTS;
    run client (0, KINDS0, REQUESTS0);
    if
    :: CLIENTS > 1 -> run client (1, KINDS1, REQUESTS1)
    :: else
    fi;
    if
    :: CLIENTS > 2 -> run client (2, KINDS2, REQUESTS2)
    :: else
    fi;
    run system ();
    run monitor ()
  }
}
