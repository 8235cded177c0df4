#!/bin/sh
# Make sure that Chromium is on this machine, for the check of the HTML pages in `make bench`, or say that it is missing.
set -u
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing chromium"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null && exit 0
fi
echo "Chromium is missing: apt-get install chromium fonts-dejavu-core; without it the HTML pages are not checked" >&2
[ "${CI:-}" = true ] && exit 1
exit 0
