# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154 # functions.sh comes before
#
# A crash of addcow-img before each call that changes a file; after
# functions.sh and, where that is used, bad-input.sh.  What counts as such a
# call is in crash-at.c.  What the system was told stays: the power does not
# go.

crash_lib=$abs_top_builddir/tests/.libs/crash-at.so
crash_status=99

# How long a command may take, in seconds.
patience=${patience:-60}

# Of how many crashes at most under valgrind.
crash_most=12

# What PREPARE and LOOK are told: the number of the call, or "done" when all
# of them were done; 1 if it was done by half; the call and its file, as in
# "pwrite /tmp/vm.raw".
crash_at=
crash_part=
crash_call=

# _crash_run NAME=VALUE... addcow-img ARGUMENT...: its status is $crash_ended.
_crash_run ()
{
    local set=() libs=${_preload:+$_preload:}$crash_lib
    while [ "$1" != addcow-img ]; do
        set+=("$1")
        shift
    done
    shift
    rm -f "$tmp/crash-last"
    crash_ended=0
    # What a crash loses of memory is no leak.
    timeout -k 1 "$patience" \
        env LD_PRELOAD="$libs" CRASH_LAST="$tmp/crash-last" "${set[@]}" \
        "${VG[@]}" ${VG[0]:+--leak-check=no} \
        "${addcow_img:-$abs_top_builddir/img/addcow-img}" "$@" \
        </dev/null >"$tmp/out" 2>"$tmp/err" || crash_ended=$?
    crash_call=
    if [ -e "$tmp/crash-last" ]; then crash_call=$(cat "$tmp/crash-last"); fi
}

_crash_bad ()
{
    cat "$tmp/out" "$tmp/err" || : # there may be none yet
    echo "$test_name: crash $crash_at${crash_part:+ by half}: $*"
    exit 1
}

# crash_each PREPARE LOOK COMMAND...: for each call that changes a file, of
# those that COMMAND, addcow-img and its arguments, makes: run PREPARE, run
# COMMAND up to that call, and LOOK; if the call is a write, all that once
# more with half of it done; at last PREPARE, the whole of COMMAND, and LOOK.
# PREPARE and LOOK are functions, and the test ends when one of them fails.
# It ends too when there is at most one such call, or COMMAND ends otherwise.
#
# What COMMAND prints is in out and err in $tmp, and the calls in
# $tmp/crash-calls.  Under valgrind only some of the calls are taken.  Threads
# may make other calls, and more or fewer, each time.  Not for use in "if",
# "&&" or "||": bash would not see then what fails in the functions.
crash_each ()
{
    crash_prepare=$1 crash_look=$2 crash_step=1
    shift 2
    if [ "$1" != addcow-img ]; then _crash_bad "no addcow-img: $*"; fi
    rm -f "$tmp/crash-calls" "$tmp/crash-count"
    crash_at="done" crash_part=
    "$crash_prepare"
    _crash_run CRASH_COUNT="$tmp/crash-count" "$@"
    if [ $crash_ended -ne 0 ]; then _crash_bad "status $crash_ended"; fi
    crash_count=$(cat "$tmp/crash-count")
    if [ "$crash_count" -le 1 ]; then _crash_bad "only $crash_count calls"; fi
    if [ -n "$ADDCOW_VALGRIND" ]; then
        crash_step=$(((crash_count + crash_most - 1) / crash_most))
    fi
    for ((crash_at = 1; crash_at <= 100000; crash_at += crash_step)); do
        _crash_point "" "$@"
        [ "$crash_at" != "done" ] || return 0
        case $crash_call in
            write\ * | pwrite\ * | copy_file_range\ *)
                _crash_point 1 "$@"
                [ "$crash_at" != "done" ] || return 0 ;;
        esac
    done
    _crash_bad "calls without end"
}

# _crash_point PART COMMAND...: at call $crash_at, which becomes "done" when
# there was none.
_crash_point ()
{
    crash_part=$1
    shift
    "$crash_prepare"
    _crash_run CRASH_AT="$crash_at" CRASH_PART="$crash_part" "$@"
    case $crash_ended in
        0)
            crash_at="done" crash_part= ;;
        "$crash_status")
            [ -n "$crash_call" ] || _crash_bad "it ends so by itself"
            echo "$crash_at${crash_part:+ half} $crash_call" \
                >> "$tmp/crash-calls" ;;
        *)
            _crash_bad "status $crash_ended" ;;
    esac
    "$crash_look"
}
