#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow-img without stdin, stdout or stderr: what it prints goes into none of
# the files of the overlay, and is not told to have been printed.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/bad-input.sh"

# valgrind writes to stderr itself.
VG=()

size=65536
random_file base.img $((2 * size))

# An overlay of which there is something to say to stderr too: the backing file
# has changed.
new ()
{
    rm -f vm.*
    truncate -s $size vm.raw
    touch -d @2 base.img
    addcow-img create -q -b base.img -F raw vm.add-cow $size
    printf '\360' | dd of=vm.add-cow bs=1 seek=2100 conv=notrunc status=none
    touch -d @1 base.img
}

# The files that a verb leaves when all is open.
wanted ()
{
    new
    addcow-img "$@" > out 2> err || :
    cat out err
    for name in vm.add-cow vm.raw base.img; do
        cp $name "$tmp/$name"
    done
}

# same STATUS CLOSED VERB...: without the files CLOSED.
same ()
{
    local want=$1 closed=$2 status=0
    shift 2
    new
    eval "addcow-img \"\$@\" $closed" || status=$?
    for name in vm.add-cow vm.raw base.img; do
        cmp $name "$tmp/$name"
    done
    [ $status -eq "$want" ]
}

for verb in "resize vm.add-cow 128K" "resize --shrink vm.add-cow 1000" \
            "stream vm.add-cow" "check -r vm.add-cow" "map vm.add-cow" \
            "info vm.add-cow"; do
    ok=0
    case $verb in
        check*) ok=3 ;;
    esac
    # shellcheck disable=SC2086 # it is words
    {
        wanted $verb
        for closed in '<&-' '2>&-' '<&- 2>&-'; do
            same $ok "> out $closed" $verb
            [ -s out ]
        done
        for closed in '>&-' '<&- >&-' '>&- 2>&-' '<&- >&- 2>&-'; do
            same 1 "$closed" $verb
        done
    }
done
new
touch -d @2 base.img
# shellcheck disable=SC2016 # it is the other bash's
fails_with "standard output: Bad file descriptor" \
    bash -c '"$1" resize vm.add-cow 128K >&-' - "$addcow_img"
