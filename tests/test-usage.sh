#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow-img: help, version, wrong verbs and options, and output that
# cannot be written.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/bad-input.sh"

verbs=(check commit create info map rebase resize stream)

# Help is for stdout, and for 80 columns.
for arguments in --help -h "${verbs[@]/%/ --help}" "${verbs[@]/%/ -h}" \
                 "create -q --help x" "info --output=json --help"; do
    # shellcheck disable=SC2086
    addcow-img $arguments > out 2> err
    [ -s out ] && [ ! -s err ]
    grep -q '^addcow-img' out
    [ -z "$(grep '.\{81\}' out)" ]
done
for verb in "${verbs[@]}"; do
    addcow-img --help | grep "^  $verb "
    # shellcheck disable=SC1087
    addcow-img $verb --help | head -n 1 | grep "^addcow-img $verb "
done
[ "$(addcow-img --help | grep -c '^  [a-z]')" -eq ${#verbs[@]} ]

version=$(sed -n 's/^#define PACKAGE_VERSION "\(.*\)"/\1/p' \
              "$abs_top_builddir/config.h")
for option in --version -V; do
    [ "$(addcow-img $option)" = "addcow-img $version" ]
done

metadata vm.add-cow size=4096
keep
help="(see addcow-img --help)"
fails_in_time "a verb is missing $help" addcow-img
fails_in_time "unknown verb 'nonsense' $help" addcow-img nonsense
fails_in_time "unknown verb 'INFO' $help" addcow-img INFO vm.add-cow
fails_in_time "unknown verb 'inf' $help" addcow-img inf vm.add-cow
fails_in_time "unknown verb 'vm.add-cow' $help" addcow-img vm.add-cow
fails_in_time "unknown verb '' $help" addcow-img ''
fails_in_time "unknown option '-x' $help" addcow-img -x info vm.add-cow
fails_in_time "unknown option '--nonsense' $help" addcow-img --nonsense

help="(see addcow-img info --help)"
fails_in_time "info: exactly one FILE is needed $help" addcow-img info
fails_in_time "info: exactly one FILE is needed $help" \
    addcow-img info vm.add-cow vm.add-cow
fails_in_time "info: unknown option '-x' $help" addcow-img info -x vm.add-cow
fails_in_time "info: unknown option '-f' $help" addcow-img info -f vm.add-cow
fails_in_time "unknown option '--force' $help" \
    addcow-img info vm.add-cow --force
fails_in_time "a value is missing after '--output' $help" \
    addcow-img info vm.add-cow --output
for output in '' xml JSON 'json,' jsonx 'human '; do
    fails_in_time "--output must be human or json $help" \
        addcow-img info --output="$output" vm.add-cow
done
fails_in_time "info: FILE must not be empty $help" addcow-img info ''
fails_in_time "--output: No such file or directory" \
    addcow-img info -- --output

# An error is one line, whatever is in a name.
fails_in_time "unknown verb 'a\\012b\\033' (see addcow-img --help)" \
    addcow-img $'a\nb\e'
fails_in_time 'a\012b\033: No such file' addcow-img info $'a\nb\e'
fails_in_time "-o: unknown key 'a\\012b'" \
    addcow-img create -o $'a\nb=' new 1M
fails_in_time 'b\012\177: No such file' addcow-img create -b $'b\n\x7f' new
fails_in_time "'\\012' is not a size" addcow-img create new $'\n'
touch $'a\nb'
fails_in_time 'a\012b: exists already' addcow-img create $'a\nb' 1M
fails_in_time 'a\012b: not an add-cow file' addcow-img info $'a\nb'
rm $'a\nb'
kept

# What is not read is not told to have been.
fails_full ()
{
    fails_in_time "standard output: No space left on device" to_full "$@"
}
to_full ()
{
    addcow-img "$@" > /dev/full
}
fails_full --help
fails_full --version
fails_full check --help
fails_full create --help
fails_full info --help
fails_full info vm.add-cow
fails_full info --output=json vm.add-cow
fails_full create full.add-cow 4K
# Without anything to say there is nothing to fail.
rm full.*
addcow-img create -q full.add-cow 4K > /dev/full
