#!/bin/sh
# Make sure that PostgreSQL 15 with wal2json, PgBouncer, iproute2, zsh and fish are on this machine, or say what is missing.
set -u
bin=/usr/lib/postgresql/15/bin
plugin=/usr/lib/postgresql/15/lib/wal2json.so
packages="postgresql-15 postgresql-15-wal2json pgbouncer iproute2 zsh fish"

complete() {
    [ -x "$bin/postgres" ] && [ -e "$plugin" ] && { command -v pgbouncer || [ -x /usr/sbin/pgbouncer ]; } >/dev/null &&
        { command -v ip || [ -x /sbin/ip ]; } >/dev/null && command -v zsh >/dev/null && command -v fish >/dev/null
}

complete && exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing $packages"
    export DEBIAN_FRONTEND=noninteractive
    # The package would make and start a cluster of its own; the tests bring theirs.
    mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] ||
        echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    # shellcheck disable=SC2086
    apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages >/dev/null
    complete && exit 0
fi

echo "PostgreSQL 15 with wal2json, PgBouncer, iproute2, zsh or fish is missing: apt-get install $packages" >&2
echo "Without them the comparisons with the wal2json plugin, test_decoding and pg_recvlogical, and the tests" >&2
echo "through a connection pooler, over a broken network link and of the completion scripts, are left out." >&2
[ "${CI:-}" = true ] && exit 1
exit 0
