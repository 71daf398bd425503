#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The model of the engine, model/overlay.pml, in all of its states: three
# actors on three sectors, with and without faults; and that it finds what is
# wrong with each of its mutants.  With ADDCOW_LONG they do more.

source ./functions.sh
set -e
set -x

# Nothing of addcow is run.
[ -z "$ADDCOW_VALGRIND" ] || exit 0

requires spin -V
requires "${CC:-gcc}" --version

# What an actor does, see the model.
declare -ri WHOLE=1 PART=2 FUA=4 FLUSH=8 FILL=16 COMMIT=32 MUST_FUA=64
# How a sector begins.
declare -ri CLEAR=1 ALLOCATED=2 KILLED=4

nr_searches=0 nr_states=0 nr_mutants=0

# search OPTIMIZE {KINDS REQUESTS}... [-DNAME=VALUE]...: look at all states, or
# up to the first in which something is wrong.  There are three actors.
search ()
{
    local optimize=$1
    local actors=(-DKINDS0="$2" -DREQUESTS0="$3" -DKINDS1="$4"
                  -DREQUESTS1="$5" -DKINDS2="$6" -DREQUESTS2="$7")
    shift 7
    rm -rf "$tmp/pan"
    mkdir "$tmp/pan"
    pushd "$tmp/pan"
    spin -a "${actors[@]}" "$@" "$abs_srcdir/model/overlay.pml"
    # Safety and the end of each actor, whole, in less than 4 GiB.
    "${CC:-gcc}" -w "$optimize" -DSAFETY -DCOLLAPSE -DMEMLIM=3900 \
        -DVECTORSZ=1024 -o pan pan.c
    ./pan -m100000 -n > out 2>&1
    popd
    tail -n 30 "$tmp/pan/out"
    # It is no search of the whole that comes to the end of something.
    if grep -E 'max search depth|out of memory|memory limit' "$tmp/pan/out"
    then
        exit 1
    fi
}

# holds ARGUMENT... of search.
holds ()
{
    search "$@"
    grep -E 'errors: 0$' "$tmp/pan/out"
    if grep -F 'Search not completed' "$tmp/pan/out"; then exit 1; fi
    nr_searches=$((nr_searches + 1))
    nr_states=$((nr_states +
        $(sed -n 's/^ *\([0-9]*\) states, stored$/\1/p' "$tmp/pan/out")))
}

# found "MUTANT..." ARGUMENT...: by the same search each of these is found, and
# by what it does to a disk.
found ()
{
    local mutants=$1 mutant
    shift
    for mutant in $mutants; do
        grep -w "MUTANT_$mutant" "$abs_srcdir/model/overlay.pml"
        search "$@" -DMUTANT_"$mutant"
        grep -F 'assertion violated' "$tmp/pan/out"
        grep -E 'errors: 1$' "$tmp/pan/out"
        nr_mutants=$((nr_mutants + 1))
    done
}

# Who touches a sector first.
writers=(-O0 $((WHOLE | PART)) 1 $((WHOLE | PART)) 1 "$FILL" 1
         "-DBEGIN=$CLEAR" -DRANGES=2)
holds "${writers[@]}"
found "PART_UNLOCKED WHOLE_UNLOCKED FILL_UNLOCKED BITS_BEFORE_DATA" \
    "${writers[@]}"

# What is durable when.
flush=(-O0 $((WHOLE | FLUSH)) 2 "$WHOLE" 1 "$FLUSH" 1 "-DBEGIN=$CLEAR")
holds "${flush[@]}" -DRANGES=0
found "NO_FLUSH BITS_FIRST BITS_OF_FLUSH NO_SYNC THAW_ALL JOIN" \
    "${flush[@]}" -DRANGES=1

fua=(-O0 $((WHOLE | MUST_FUA)) 1 "$WHOLE" 1 "$FLUSH" 1
     -DBEGIN=$((CLEAR | ALLOCATED)) -DRANGES=0)
holds "${fua[@]}"
found "FUA_ALONE" "${fua[@]}"

killed=(-O0 $((WHOLE | FUA | MUST_FUA)) 1 "$FLUSH" 2 "$COMMIT" 1
        "-DBEGIN=$KILLED" -DRANGES=0)
holds "${killed[@]}"
found "UNSYNCED" "${killed[@]}"

# The image cannot be written.
faults=(-O0 $((WHOLE | FLUSH)) 2 "$FLUSH" 1 "$COMMIT" 1
        -DBEGIN=$((CLEAR | ALLOCATED)) -DRANGES=0 -DIMAGE_FAULTS=1)
holds "${faults[@]}"
found "NO_REWRITE REWRITE_AT_ONCE OTHERS_FAIL FLUSHING_GOES_ON \
       SUSPECT_UNLOCKED UNTOLD" "${faults[@]}"
found "NO_EPOCH" -O0 $((WHOLE | FLUSH)) 2 $((WHOLE | MUST_FUA)) 1 0 0 \
    -DCLIENTS=2 -DBEGIN=$((CLEAR | ALLOCATED)) -DRANGES=1 -DIMAGE_FAULTS=1

# Nor the metadata file.
metadata=(-O0 $((WHOLE | MUST_FUA)) 1 "$FLUSH" 2 "$COMMIT" 1
          -DBEGIN=$((CLEAR | KILLED)) -DRANGES=0 -DMETADATA_FAULTS=1)
holds "${metadata[@]}"
found "FORGET_BITS FORGET_FOUND" "${metadata[@]}"

if [ -n "$ADDCOW_LONG" ]; then
    holds -O2 $((WHOLE | PART)) 1 $((WHOLE | PART)) 1 "$FILL" 1 \
        -DBEGIN=$((CLEAR | ALLOCATED)) -DRANGES=4
    holds -O2 $((WHOLE | PART | FLUSH)) 2 $((WHOLE | PART)) 1 "$COMMIT" 2 \
        "-DBEGIN=$CLEAR" -DRANGES=3
    holds -O2 $((WHOLE | MUST_FUA)) 1 $((WHOLE | PART | FUA)) 1 "$FLUSH" 1 \
        -DBEGIN=$((CLEAR | ALLOCATED | KILLED)) -DRANGES=0
    holds -O2 $((WHOLE | FLUSH)) 2 "$WHOLE" 1 "$COMMIT" 1 \
        -DBEGIN=$((CLEAR | ALLOCATED)) -DRANGES=1 -DIMAGE_FAULTS=1
    holds -O2 $((WHOLE | PART | FLUSH)) 2 "$FLUSH" 2 "$COMMIT" 1 \
        -DBEGIN=$((CLEAR | ALLOCATED)) -DRANGES=0 -DIMAGE_FAULTS=1
    holds -O2 $((WHOLE | FLUSH)) 2 "$WHOLE" 1 "$FLUSH" 2 \
        -DBEGIN=$((CLEAR | KILLED)) -DRANGES=0 -DMETADATA_FAULTS=1
fi

set +x
echo "$nr_searches searches of $nr_states states: all is well in each;" \
    "$nr_mutants mutants: all found"
