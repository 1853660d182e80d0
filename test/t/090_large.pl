# Large things: a transaction of two million events, the largest payload, text that is not UTF-8 in its database.
use strict;
use warnings;
use Test::More;
use Time::HiRes qw(time);

use OutboxTest;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, conf => "outbox.retention = '1 h'\nmax_wal_size = '4GB'\nautovacuum = off\nfsync = off\n");
my $millions = $ENV{EVENTS} // 2_000_000;

sub one { my ($sql, $db) = @_; return $node->safe_psql($db // 'postgres', $sql, timeout => 200) }

sub status_of {
    my ($pid, $what) = @_;
    return OutboxTest::slurp_file("/proc/$pid/status") =~ /^$what:\s+(\d+) kB/m ? $1 / 1000 : die "no $what";
}

# one transaction

my $pid = wait_for_worker($node);
one(q{SELECT outbox.emit('large.first.one', '{}')});
poll_until(sub { flush($node) }, 'the worker has begun');
my $at_rest = status_of($pid, 'RssAnon');
# it begins when it can be looked at
pause_sink($node);
one(qq{SELECT count(outbox.emit('large.event.emitted', '{"number": ' || i || ', "text": "as long as it needs to be"}'))
         FROM generate_series(1, $millions) i});
one(q{SELECT outbox.resume('default')});
my ($most, $looks, $longest, $fresh, $last) = (0, 0, 0, 0, '');
poll_until(
    sub {
        my $now = status_of($pid, 'RssAnon');
        $most = $now if $now > $most;
        my ($held, $began, $age) = split /\|/, one("SELECT backend_xmin IS NOT NULL, xact_start, COALESCE(extract(epoch FROM clock_timestamp() - xact_start), 0)
                                                      FROM pg_stat_activity WHERE pid = $pid");
        $looks++;
        # however long each takes: without a snapshot, or in another transaction than before
        $fresh++ if $held ne 't' || $began ne $last;
        $last = $began;
        $longest = $age if $age > $longest;
        return $redis->cmd('XLEN', 'outbox:{large}') > $millions;
    },
    'all of it is in the stream', 180);
poll_until(sub { flush($node) }, 'all of it is published');
is(worker_pid($node), $pid, 'it took one worker');
is($redis->cmd('XLEN', 'outbox:{large}'), $millions + 1, "$millions events of one transaction are in the stream");
cmp_ok($most, '<', 100, 'with less than 100 MB of memory') or diag "$at_rest MB at rest";
note "$most MB, $at_rest MB at rest; another snapshot or none in $fresh of $looks looks, longest transaction $longest s";
cmp_ok($looks, '>', 10, 'the worker was looked at while it worked');
cmp_ok($fresh, '>', 5, 'it gave its snapshot back between chunks, again and again');

# Every entry, in order. Redis looks itself: two million entries are too many for a client of a few lines.
my $walk = <<'LUA';
local from, next, bad = ARGV[1], tonumber(ARGV[2]), 0
local page = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 20000)
local ms, n = string.match(from, '(%d+)-(%d+)')
ms, n = tonumber(ms) or 0, tonumber(n) or -1
for _, entry in ipairs(page) do
    local at, index = string.match(entry[1], '^(%d+)-(%d+)$')
    at, index = tonumber(at), tonumber(index)
    local right = next == 0 and '{}' or '{"number": ' .. next .. ', "text": "as long as it needs to be"}'
    if entry[2][16] ~= right or at < ms or (at == ms and index ~= n + 1) or (at > ms and index ~= 0) then bad = bad + 1 end
    ms, n, next = at, index, next + 1
end
return { #page > 0 and '(' .. page[#page][1] or '', next, bad, #page }
LUA
my ($from, $next, $bad, $size) = ('-', 0, 0, 1);
while ($size) {
    my $wrong;
    ($from, $next, $wrong, $size) = @{ $redis->cmd('EVAL', $walk, 1, 'outbox:{large}', $from, $next) };
    $bad += $wrong;
}
is($next, $millions + 1, 'all were looked at');
is($bad, 0, 'and are in the order in which they were emitted, each once, with no position left out');
$redis->cmd('DEL', 'outbox:{large}');

# payloads

my $limit = one("SELECT setting FROM pg_settings WHERE name = 'outbox.max_payload_size'");
is($limit, 1024 * 1024, 'a payload may have 1 MB');
one(qq{SELECT outbox.emit('limit.payload.full', '"' || repeat('x', $limit - 2) || '"')});
my ($status, undef, $err) = $node->psql('postgres', qq{SELECT outbox.emit('limit.payload.full', '"' || repeat('x', $limit - 1) || '"')});
isnt($status, 0, 'and not one byte more');
like($err, qr/ERROR: .*\n(.*\n)*HINT:/, 'which is said with a hint');
# many of them at once are more than a chunk or a socket's buffer holds
one(qq{SELECT outbox.emit('limit.payload.full', '"' || repeat(chr(8364), ($limit - 2) / 3) || '"') FROM generate_series(1, 30)});
poll_until(sub { flush($node) }, 'all of it is published');
my @entries = $redis->entries('outbox:{limit}');
is(scalar @entries, 31, 'all of them are in the stream');
is($entries[0][1]{payload}, '"' . 'x' x ($limit - 2) . '"', 'the full payload as it was emitted');
is((grep { $_->[1]{payload} ne '"' . "\xe2\x82\xac" x (($limit - 2) / 3) . '"' } @entries[ 1 .. 30 ]), 0, 'and the others');
cmp_ok(status_of($pid, 'RssAnon'), '<', 150, 'the worker does not keep their memory');

# encodings

for my $encoding ('LATIN1', 'SQL_ASCII', 'EUC_JP') {
    my $db = lc $encoding;
    one("CREATE DATABASE $db TEMPLATE template0 ENCODING '$encoding' LOCALE 'C'");
    prepare_database($node, $db, load => 0);
    my $text = $encoding eq 'EUC_JP' ? "\xe6\x97\xa5\xe6\x9c\xac" : "na\xc3\xafve caf\xc3\xa9";
    my $topic = 'of_' . $db;
    one(qq{SET client_encoding = 'UTF8'; SELECT outbox.emit('$topic.text.emitted', '{"text": "$text"}', aggregate_id => '$text',
           aggregate_type => '$text', headers => '{"key": "$text"}')}, $db);
    poll_until(sub { flush($node, $db) }, 'it is published');
    my ($entry) = $redis->entries("outbox:{$topic}");
    is_deeply([ @{ $entry->[1] }{qw(payload aggregate_id aggregate_type headers)} ],
        [ qq({"text": "$text"}), $text, $text, qq({"key": "$text"}) ], "text of a $encoding database arrives as UTF-8");
}

done_testing();
