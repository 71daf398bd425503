# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154 # functions.sh comes before
#
# Programs with a fault in them, to see that a test finds such a one.  After
# functions.sh, in $tmp; not in builds with a sanitizer.

cat > edit.py <<'PY'
import sys

source, copy, *edits = sys.argv[1:]
with open(source) as f:
    text = f.read()
for old, new in zip(edits[::2], edits[1::2]):
    if text.count(old) != 1:
        sys.exit("%s: this is there %d times, and not once:\n%s"
                 % (source, text.count(old), old))
    text = text.replace(old, new)
with open(copy, "w") as f:
    f.write(text)
PY

# edit_source SOURCE COPY [OLD NEW]...: a copy of a source of the tree; each OLD
# is there once, or this fails, and becomes NEW.
edit_source ()
{
    /usr/bin/python3 edit.py "$abs_top_srcdir/$1" "${@:2}"
}

# setting NAME: of the build.
setting ()
{
    sed -n "s/^$1 = //p" "$abs_top_builddir/lib/Makefile"
}

# compile [OPTION...]: with the compiler of the build, and its options.
compile ()
{
    # The settings are words.
    # shellcheck disable=SC2046
    $(setting CC) $(setting CFLAGS) -w -DHAVE_CONFIG_H \
        -I"$abs_top_builddir" -I"$abs_top_srcdir/lib" "$@"
}

# What a program of the engine is linked with, as words.
libraries ()
{
    echo "-pthread $(setting LIBNBD_LIBS) $(setting JSON_C_LIBS)" \
         "$(setting LIBS)"
}

# build_mutant NAME FILE [OLD NEW]...: the filter, as $tmp/NAME.so, with an
# edited FILE of lib/.
build_mutant ()
{
    edit_source "lib/$2" "$1.c" "${@:3}"
    # What is in an archive already is not taken from it.
    # shellcheck disable=SC2046
    compile -fPIC -fvisibility=hidden -shared -o "$1.so" "$1.c" \
        "$abs_top_builddir"/filters/addcow/.libs/*.o \
        "$abs_top_builddir/lib/.libs/libaddcow.a" $(libraries)
}
