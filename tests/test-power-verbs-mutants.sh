#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# That test-power-verbs.sh finds what it is there to find: variants of
# addcow-img with one thing wrong lose something when the power fails.  In all
# of them, and in one with nothing wrong, commits and rounds are short, so that
# a small disk has many.  ADDCOW_SEED repeats the lives; ADDCOW_VARIANT is a
# pattern for the names of those to try; with ADDCOW_LONG there are more of
# them.

source ./functions.sh
set -e
set -x

seed=${ADDCOW_SEED:-$RANDOM$RANDOM}
wanted=${ADDCOW_VARIANT:-*}
# A variant is found after some, and nobody waits for the others.
lives=${ADDCOW_LIVES:-300}
cd "$tmp"
mkdir files
if [ "$(stat -f -c %T /dev/shm)" = tmpfs ] &&
    [ "$(($(stat -f -c '%a * %S' /dev/shm)))" -gt 33554432 ]; then
    rmdir files
    files=$(mktemp -d /dev/shm/addcow-test.XXXXXX)
    cleanup_fn "rm -rf '$files'"
    ln -s "$files" files
fi

source "$abs_srcdir/mutants.sh"

# edited NAME SOURCE [OLD NEW]...: NAME/SOURCE is an edited one, and compiled.
edited ()
{
    local name=$1 source=$2
    local copy=$name/${source//\//-}
    shift 2
    mkdir -p "$name"
    edit_source "$source" "$copy" "$@"
    compile -O0 -I"$abs_top_srcdir/img" -c -o "${copy%.c}.o" "$copy"
}

# link NAME: NAME/addcow-img of what was edited, for it or for all, and all
# other objects of the build.
link ()
{
    local name=$1 folder source object objects=("$1"/*.o)
    for object in often/*.o; do
        [ -e "$name/${object##*/}" ] || objects+=("$object")
    done
    for object in "$abs_top_builddir"/lib/.libs/libaddcow_la-*.o \
                  "$abs_top_builddir"/lib/.libs/*.o \
                  "$abs_top_builddir"/img/[!f]*.o; do
        folder=img
        [[ $object == */.libs/* ]] && folder=lib
        source=$folder-${object##*/}
        [ -e "$object" ] && [ ! -e "often/$source" ] &&
            [ ! -e "$name/$source" ] && objects+=("$object")
    done
    # shellcheck disable=SC2046
    compile -o "$name/addcow-img" "${objects[@]}" $(libraries)
}

# try NAME LIVES OPTION...: the status is 2 when something was lost.
try ()
{
    local name=$1 lives=$2 status=0 libs=$abs_top_builddir/tests/.libs
    shift 2
    env TMPDIR="$tmp/files" PYTHONPATH="$abs_srcdir" \
        PYTHONDONTWRITEBYTECODE=1 timeout 1000 \
        /usr/bin/python3 "$abs_srcdir/power_verbs.py" \
        --log-lib="$libs/power-log.so" \
        --crash-lib="$libs/crash-at.so:$libs/power-log.so" \
        --states=25 "$@" "$seed" "$lives" -- "$tmp/$name/addcow-img" \
        > out 2>&1 || status=$?
    cat out
    return $status
}

# loses NAME VERB SOURCE OLD NEW...: one thing of SOURCE is wrong.
nr_found=0
loses ()
{
    local name=$1 verb=$2 source=$3 status=0 more=()
    shift 3
    # shellcheck disable=SC2053 # it is a pattern
    [[ $name == $wanted ]] || return 0
    case $source in
        lib/filler.c) more=("${often_filler[@]}") ;;
        lib/rebase.c) more=("${often_rebase[@]}") ;;
        img/commit.c) more=("${often_commit[@]}") ;;
    esac
    edited "$name" "$source" "${more[@]}" "$@"
    link "$name"
    try "$name" $lives --verb="$verb" || status=$?
    [ $status -eq 2 ]
    sed -n "s/^lost: /$name: /p" out >> results
    rm -r "${name:?}"
    nr_found=$((nr_found + 1))
}

# What is the same in all of them.
often_filler=(
    "define COMMIT_BYTES (64 * 1024 * 1024)" "define COMMIT_BYTES (16 * 1024)"
    "define SPAN_BYTES (4 * 1024 * 1024)" "define SPAN_BYTES (32 * 1024)"
    "define REQUEST_BYTES_NEAR (256 * 1024)"
    "define REQUEST_BYTES_NEAR (8 * 1024)")
often_rebase=(
    "define COMMIT_BYTES (64 * 1024 * 1024)" "define COMMIT_BYTES (16 * 1024)"
    "define PIECE (1024 * 1024)" "define PIECE (16 * 1024)"
    "define SMALL_HOLE (64 * 1024)" "define SMALL_HOLE (4 * 1024)")
often_commit=(
    ".round_bytes = COMMIT_ROUND_BYTES" ".round_bytes = 16 * 1024")
edited often lib/filler.c "${often_filler[@]}"
edited often lib/rebase.c "${often_rebase[@]}"
edited often img/commit.c "${often_commit[@]}"
link often
try often ${ADDCOW_LONG:+50}${ADDCOW_LONG:-2} \
    --verb=commit --verb=rebase --verb=stream

flush="  r = flush_images (ov, image);
  wait_for_flushing (ov);"

# The flush of the image is left out; bits are written before it; those that
# came during it are written, too; the metadata file is not synced then.
loses no-flush stream lib/overlay.c \
    "$flush" "  r = 0; (void) flush_images; (void) image;"
loses bits-first stream lib/overlay.c \
    "$flush" \
    "  r = map_write_frozen (ov->map);
  if (r == 0)
    r = flush_images (ov, image);
  wait_for_flushing (ov);"
loses late-bits stream lib/overlay.c \
    "$flush" \
    "  r = flush_images (ov, image);
  map_thaw (ov->map, false);
  if (map_freeze (ov->map))
    abort ();
  wait_for_flushing (ov);"
loses no-sync stream lib/map.c \
    "  int r = map->metadata->ops->flush (map->metadata);" "  int r = 0;"

# A new file is not synced, its folder is not, or that of an image that was
# there.
loses no-sync-of-file create img/new-file.c \
    "  r = fd_sync_with_times (file->fd);" "  r = 0;"
loses no-sync-of-folder rebase img/new-file.c \
    "  r = sync_folder (file->path);" "  r = 0;"
loses no-sync-of-image create img/create.c \
    "    r = sync_folder (c->image_path);" "    r = 0;"

# The size is written before all else is durable.
loses early-size resize lib/resize.c \
    "  return blame (FAULT_METADATA, flush (r->metadata), fault);
}

/* Where" \
    "  return 0;
}

/* Where"

# Bits are cleared before the target is flushed; holes are made before that
# is durable.
loses early-clearing commit lib/commit.c \
    "  r = target->ops->flush (target);
  if (r)
    return fail (c, FAULT_BACKING, r);
  r = clear_bits (c);
  if (r)
    return fail (c, FAULT_METADATA, r);" \
    "  r = clear_bits (c);
  if (r == 0)
    r = target->ops->flush (target);
  if (r)
    return fail (c, FAULT_BACKING, r);"
loses early-holes commit lib/commit.c \
    "    r = metadata->ops->flush (metadata);" "    r = 0;"

if [ -n "$ADDCOW_LONG" ]; then
    loses no-flush-rebase rebase lib/overlay.c \
        "$flush" "  r = 0; (void) flush_images; (void) image;"
    loses no-sync-rebase rebase lib/map.c \
        "  int r = map->metadata->ops->flush (map->metadata);" "  int r = 0;"
    loses no-sync-of-file-rebase rebase img/new-file.c \
        "  r = fd_sync_with_times (file->fd);" "  r = 0;"
    loses no-sync-of-folder-create create img/new-file.c \
        "  r = sync_folder (file->path);" "  r = 0;"
    loses no-flush-resize resize lib/resize.c \
        "      blame (FAULT_IMAGE, flush (r->image), fault) == -1)" "      0)"
    loses no-sync-of-size resize lib/resize.c \
        "  return err ? err : flush (r->metadata);" "  return err;"
    loses no-zeroes resize lib/resize.c \
        "      zero_image (r, new_size_bytes, fault) == -1 ||" ""
    loses no-flush-commit commit lib/commit.c \
        "  r = target->ops->flush (target);" "  r = 0;"
    loses no-bits rebase img/rebase.c \
        "  return r ? r : copy_bits (v, fd);" "  return r;"
    loses nothing-kept rebase img/rebase.c \
        "  if (!is_same_backing (v) && keep" "  if (0 && keep"
fi

cat results
echo "$nr_found variants that lose something, seed $seed: all found"
