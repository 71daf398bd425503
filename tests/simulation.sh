# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154 # functions.sh comes before
#
# unit/test-simulation with other engines.  For the tests in $tmp that source
# this.

unit=$abs_top_builddir/tests/unit
# Not with the options of the make that may have started this.
flags=$(MAKEFLAGS='' make -s --no-print-directory -C "$unit" simulation-flags)

source "$abs_srcdir/mutants.sh"

# link NAME FILE...: the program NAME, of these, which come before those of
# the engine that is in its archive.
link ()
{
    local name=$1
    shift
    # shellcheck disable=SC2046,SC2086
    compile -o "$name" "$unit/test-simulation.o" "$@" $flags \
        "$abs_top_builddir/lib/.libs/libaddcow.a" "$unit/.libs/libunit.a" \
        "$abs_top_builddir/lib/.libs/libaddcow.a" \
        $(libraries)
}
