#!/bin/sh
# Stands in for Python in the tests of model downloads: run under a link in a test's folder as
# `LINK -m pip download ... -d FOLDER NAME==VERSION`, it copies NAME.whl from there to FOLDER.
# Files in the test's folder steer it: `fail-NAME` is printed to standard error and ends it with
# an error once (then it is gone), `no-pip` speaks as a Python without pip, `wait` makes it slow.
# Calls are listed in `calls`.
here=$(dirname "$0")
if [ -e "$here/no-pip" ]; then
    echo "$0: No module named pip" >&2
    exit 1
fi
case "$*" in
"-m pip download --no-deps --only-binary=:all: "*) ;;
*)
    echo "unexpected arguments: $*" >&2
    exit 2
    ;;
esac
folder=
package=
while [ $# -gt 0 ]; do
    if [ "$1" = -d ]; then
        shift
        folder=$1
    fi
    package=$1
    shift
done
echo "$package" >>"$here/calls"
name=${package%%==*}
if [ -e "$here/fail-$name" ]; then
    cat "$here/fail-$name" >&2
    rm "$here/fail-$name"
    exit 1
fi
[ -e "$here/wait" ] && sleep 1
cp "$here/$name.whl" "$folder/$name-1.0-py3-none-any.whl"
