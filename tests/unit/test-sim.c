/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The simulation itself: other tests are worth what it is.
 */

#include <config.h>

#include <errno.h>

#include "sim-image.h"
#include "common.h"

#define SIZE (8 * 4096)

static struct sim_world world;
static struct sim_store store;
static struct sim_image a, b;

static void
begin (bool multi_conn)
{
  sim_world_init (&world);
  sim_store_init (&store, &world, SIZE);
  store.track = true;
  sim_image_init (&a, &store);
  sim_image_init (&b, &store);
  a.image.multi_conn = b.image.multi_conn = multi_conn;
}

static void
end (void)
{
  sim_store_clear (&store);
  sim_world_clear (&world);
}

/* Which of the values 0 ... 9 may byte OFFSET have after power failed?
 * As a set of bits.
 */
static unsigned
after_crash (uint64_t offset)
{
  struct rng rng = { offset };
  unsigned set = 0;
  int i;

  for (i = 0; i < 200; i++) {
    struct sim_world after_world;
    struct sim_store after;

    sim_world_init (&after_world);
    sim_store_crash (&after, &after_world, &store, &rng);
    set |= 1u << sim_store_byte (&after, offset);
    sim_store_clear (&after);
    sim_world_clear (&after_world);
  }
  return set;
}

static void
write_byte (struct sim_image *image, uint8_t byte, uint64_t offset,
            unsigned flags)
{
  CHECK_EQ (image->image.ops->write (&image->image, &byte, 1, offset, flags),
            0);
}

static int
flush (struct sim_image *image)
{
  return image->image.ops->flush (&image->image);
}

static void
test_versions (void)
{
  uint8_t byte;

  begin (true);
  write_byte (&a, 1, 700, 0);
  CHECK_EQ (after_crash (700), 1 << 0 | 1 << 1);
  write_byte (&a, 2, 700, 0);
  CHECK_EQ (after_crash (700), 1 << 0 | 1 << 1 | 1 << 2);
  CHECK_EQ (flush (&b), 0);
  CHECK_EQ (after_crash (700), 1 << 2);
  write_byte (&a, 3, 700, 0);
  write_byte (&a, 4, 700, IMAGE_FUA);
  CHECK_EQ (after_crash (700), 1 << 4);
  CHECK_EQ (a.image.ops->zero (&a.image, 512, 512, 0), 0);
  CHECK_EQ (after_crash (700), 1 << 4 | 1 << 0);
  CHECK_EQ (b.image.ops->read (&b.image, &byte, 1, 700), 0);
  CHECK_EQ (byte, 0);
  end ();
}

static void
test_one_handle (void)
{
  begin (false);
  write_byte (&a, 1, 0, 0);
  write_byte (&b, 2, 512, 0);
  CHECK_EQ (flush (&a), 0);
  CHECK_EQ (after_crash (0), 1 << 1);
  CHECK_EQ (after_crash (512), 1 << 0 | 1 << 2);
  end ();
}

static void
test_failed_flush (void)
{
  begin (true);
  write_byte (&a, 1, 0, 0);
  sim_fail (&a.port, SIM_FLUSH, 1, EIO, 0);
  CHECK_EQ (flush (&a), EIO);
  CHECK_EQ (after_crash (0), 1 << 0 | 1 << 1);
  CHECK_EQ (flush (&a), 0);
  CHECK_EQ (after_crash (0), 1 << 1);

  store.forgets = true;
  write_byte (&a, 2, 0, 0);
  sim_fail (&a.port, SIM_FLUSH, 1, EIO, 0);
  CHECK_EQ (flush (&a), EIO);
  CHECK_EQ (flush (&a), 0);
  CHECK_EQ (after_crash (0), 1 << 1 | 1 << 2);
  write_byte (&a, 2, 0, 0);
  CHECK_EQ (flush (&a), 0);
  CHECK_EQ (after_crash (0), 1 << 2);
  end ();
}

static void
flush_a (void *opaque UNUSED)
{
  CHECK_EQ (flush (&a), 0);
}

static void
test_write_during_flush (void)
{
  struct worker worker;
  struct gate gate;

  begin (true);
  write_byte (&a, 1, 0, 0);
  sim_hold (&a.port, SIM_FLUSH, SIM_ANYWHERE, &gate);
  worker_start (&worker, flush_a, NULL);
  workers_settle ();
  CHECK_EQ (worker_state (&worker), WORKER_HELD);
  write_byte (&b, 2, 0, 0);
  write_byte (&b, 2, 512, 0);
  gate_open (&gate);
  worker_join (&worker);
  CHECK_EQ (after_crash (0), 1 << 1 | 1 << 2);
  CHECK_EQ (after_crash (512), 1 << 0 | 1 << 2);
  end ();
}

static void
test_dead (void)
{
  uint8_t byte = 1;

  begin (true);
  sim_world_kill (&world);
  CHECK_EQ (a.image.ops->write (&a.image, &byte, 1, 0, 0), EIO);
  CHECK_EQ (flush (&a), EIO);
  CHECK_EQ (after_crash (0), 1 << 0);
  end ();
}

static int
stop (void *opaque, uint64_t count, unsigned type)
{
  *(uint64_t *) opaque = type ? 0 : count;
  return EXTENT_STOP;
}

static void
test_extents (void)
{
  uint64_t data;

  begin (true);
  CHECK_EQ (a.image.ops->extents (&a.image, SIZE, 0, stop, &data), EXTENT_STOP);
  CHECK_EQ (data, 0);
  write_byte (&a, 0, 1023, 0);
  write_byte (&a, 0, 1024, 0);
  CHECK_EQ (a.image.ops->extents (&a.image, SIZE - 600, 600, stop, &data),
            EXTENT_STOP);
  CHECK_EQ (data, 1536 - 600);
  CHECK_EQ (a.image.ops->zero (&a.image, 512, 1024, IMAGE_MAY_TRIM), 0);
  CHECK (!sim_store_is_data (&store, 1024));
  CHECK (sim_store_is_data (&store, 512));
  end ();
}

static int
set_length (uint64_t length_bytes)
{
  return a.image.ops->set_length (&a.image, length_bytes);
}

/* How long may it be after power failed?  Up to two lengths. */
static void
check_lengths (uint64_t one, uint64_t other)
{
  struct rng rng = { 1 };
  bool has_one = false, has_other = false;
  int i;

  for (i = 0; i < 100; i++) {
    struct sim_world after_world;
    struct sim_store after;

    sim_world_init (&after_world);
    sim_store_crash (&after, &after_world, &store, &rng);
    CHECK (after.size_bytes == one || after.size_bytes == other);
    has_one |= after.size_bytes == one;
    has_other |= after.size_bytes == other;
    sim_store_clear (&after);
    sim_world_clear (&after_world);
  }
  CHECK (has_one && has_other);
}

static void
test_length (void)
{
  const uint64_t large = UINT64_C (1) << 30;

  begin (true);
  write_byte (&a, 1, 0, 0);
  write_byte (&a, 2, 4607, 0);
  write_byte (&a, 3, 4608, 0);
  CHECK_EQ (flush (&a), 0);

  /* What is cut off may be there after a crash. */
  CHECK_EQ (set_length (4608), 0);
  CHECK_EQ (store.size_bytes, 4608);
  check_lengths (SIZE, 4608);
  CHECK_EQ (set_length (SIZE), 0);
  CHECK_EQ (sim_store_byte (&store, 4607), 2);
  CHECK_EQ (sim_store_byte (&store, 4608), 0);
  CHECK (!sim_store_is_data (&store, 4608));
  sim_fail (&a.port, SIM_FLUSH, 1, EIO, 0);
  CHECK_EQ (flush (&a), EIO);
  check_lengths (SIZE, 4608);
  CHECK_EQ (flush (&a), 0);
  check_lengths (SIZE, SIZE);
  CHECK_EQ (after_crash (4608), 1 << 0);

  /* Within a sector, and far away. */
  CHECK_EQ (set_length (4600), 0);
  CHECK_EQ (flush (&a), 0);
  CHECK_EQ (set_length (large), 0);
  CHECK_EQ (sim_store_byte (&store, 4607), 0);
  write_byte (&a, 4, large - 1, 0);
  check_lengths (4600, large);
  CHECK_EQ (flush (&a), 0);
  CHECK_EQ (after_crash (large - 1), 1 << 4);
  CHECK_EQ (after_crash (0), 1 << 1);

  sim_log_clear (&world);
  sim_fail (&a.port, SIM_SET_LENGTH, 1, ENOSPC, 0);
  CHECK_EQ (set_length (1), ENOSPC);
  sim_world_kill (&world);
  CHECK_EQ (set_length (2), EIO);
  CHECK_EQ (store.size_bytes, large);
  CHECK_EQ (sim_log_get (&world, NULL, SIM_SET_LENGTH, 1).offset, 2);
  CHECK_EQ (sim_log_count_changes (&world, &a.port), 2);
  end ();
}

int
main (void)
{
  check_watchdog (60);
  test_versions ();
  test_one_handle ();
  test_failed_flush ();
  test_write_during_flush ();
  test_dead ();
  test_extents ();
  test_length ();
  return 0;
}
