# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154 # functions.sh comes before
#
# unit/test-simulation with other engines.  For the tests in $tmp that source
# this.

unit=$abs_top_builddir/tests/unit
flags=$(make -s -C "$unit" simulation-flags | tail -n 1)

# Edit a copy of a source of lib/: each OLD is there once, and becomes NEW.
cat > edit.py <<'PY'
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
    sed -n "s/^$1 = //p" "$unit/Makefile"
}

# compile [OPTION...]: with the compiler of the build.
compile ()
{
    # The settings are words.
    # shellcheck disable=SC2046
    $(setting CC) $(setting CFLAGS) -w -DHAVE_CONFIG_H \
        -I"$abs_top_builddir" -I"$abs_top_srcdir/lib" "$@"
}

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
        $(setting LIBNBD_LIBS) $(setting JSON_C_LIBS) $(setting LIBS)
}
