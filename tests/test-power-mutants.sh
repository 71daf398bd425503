#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# That test-power.sh finds what it is there to find: filters that are built
# with one thing wrong in their commits and flushes lose data when the power
# fails.
#
# The environment repeats or lengthens it: ADDCOW_SEED, POWER_REQUESTS,
# POWER_STATES.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/power.sh"

seed=${ADDCOW_SEED:-$RANDOM$RANDOM}
requests=${POWER_REQUESTS:-1000}
states=${POWER_STATES:-4000}
echo "seed $seed"

# Valgrind has nothing to say about these.
VG=()
cd "$tmp"

# Edit a copy of a source of lib/: each OLD is there once, and becomes NEW.
cat > edit.py <<'PY'
import re
import sys
source, copy, *edits = sys.argv[1:]
text = open(source).read()
for old, new in zip(edits[::2], edits[1::2]):
    if text.count(old) != 1:
        sys.exit("%s: %d times, not once: %s" % (source, text.count(old), old))
    text = text.replace(old, new)
open(copy, "w").write(text)
PY

# setting NAME: of the build.
setting ()
{
    sed -n "s/^$1 = //p" "$abs_top_builddir/lib/Makefile"
}

# build NAME SOURCE [OLD NEW]...: the filter $tmp/NAME.so, with SOURCE of lib/
# edited.  All other objects are those of the build.
build ()
{
    local name=$1 source=$2 objects object
    shift 2
    mkdir -p mutant
    /usr/bin/python3 edit.py "$abs_top_srcdir/lib/$source" \
        "mutant/$source" "$@"
    objects=()
    for object in "$abs_top_builddir"/lib/.libs/*.o \
                  "$abs_top_builddir"/filters/addcow/.libs/*.o; do
        [ "${object##*/}" = "libaddcow_la-${source%.c}.o" ] ||
            [ "${object##*/}" = "${source%.c}.o" ] || objects+=("$object")
    done
    # The settings are words.
    # shellcheck disable=SC2046
    $(setting CC) $(setting CFLAGS) -fPIC -shared -fvisibility=hidden \
        -DHAVE_CONFIG_H -I"$abs_top_builddir" -I"$abs_top_srcdir/lib" \
        -o "$name.so" "mutant/$source" "${objects[@]}" \
        $(setting LIBNBD_LIBS) $(setting JSON_C_LIBS) $(setting LIBS)
}

# try NAME: what becomes of the disk of that filter.  The status is that of
# power-states: 2 when something is lost.
try ()
{
    local status=0
    addcow=$tmp/$1.so
    power_new
    power_begin
    power_stopped "$seed" "$requests" "${options[@]}"
    timeout 600 "$power_states" -s "$seed" -n "$states" log \
        first/vm.add-cow first/vm.raw base.img > out || status=$?
    cat out
    return $status
}

# loses NAME
loses ()
{
    local status=0
    try "$1" || status=$?
    [ $status -eq 2 ]
    grep -F "lost: sector" out | head -n 1 | sed "s/^/$1: /" >> results
}

options=(addcow-commit-interval=1 addcow-on-read=1 addcow-hydrate=1
         addcow-hydrate-rate=1M)

# How it is built makes no difference.
build none overlay.c
try none

# The flush of the image is left out.
build no-flush overlay.c \
    "  r = flush_images (ov, image);
  wait_for_flushing (ov);" \
    "  r = 0; (void) flush_images; (void) image;
  wait_for_flushing (ov);"
loses no-flush

# The bits are written before it.
build bits-first overlay.c \
    "  r = flush_images (ov, image);
  wait_for_flushing (ov);" \
    "  r = map_write_frozen (ov->map);
  if (r == 0)
    r = flush_images (ov, image);
  wait_for_flushing (ov);" \
    "    r = map_write_frozen (ov->map);
    if (r)
      o->r" \
    "    r = 0;
    if (r)
      o->r"
loses bits-first

# Bits that arrive while the image is flushed are written, too.
build late-bits overlay.c \
    "  r = flush_images (ov, image);
  wait_for_flushing (ov);" \
    "  r = flush_images (ov, image);
  map_thaw (ov->map, false);
  if (map_freeze (ov->map))
    abort ();
  wait_for_flushing (ov);"
loses late-bits

# The metadata file is not synced behind the bits.
build no-sync map.c \
    "  r = map->metadata->ops->flush (map->metadata);
  if (r == 0)" \
    "  r = 0;
  if (r == 0)"
loses no-sync

# A flush shares a commit that began before.
build late-flush overlay.c \
    "me.wanted = ov->nr_started + 1;" \
    "me.wanted = ov->nr_started;"
loses late-flush

# Where mostly there is nothing to commit: FUA is left out,
options=(addcow-commit-interval=0)
client_options=(-w 65536)
build no-fua overlay.c \
    "  if (*more)
    flags &= ~IMAGE_FUA;" \
    "  flags &= ~IMAGE_FUA;"
loses no-fua

# or flushes are.
client_options+=(-u)
build no-plain-flush overlay.c \
    "    r = flush_image (ov, image);
    if (r)
      outcome.r" \
    "    r = 0;
    if (r)
      outcome.r"
loses no-plain-flush

cat results
echo "$(wc -l < results) filters that lose data, seed $seed: all found"
