# One process that consumes what is in a stream, with a handler that does nothing, until all of it is acknowledged: the client in
# its three ways to deal with duplicates, next to a loop of raw commands and a consumer in Node. Each has a group of its own on the
# same stream, which is whole in memory before.
package Bench::Row::Consumer;

use strict;
use warnings;
use parent 'Bench::Row';

use Bench::Servers;

use constant STREAM => 'outbox:{billing}';

sub numbers { return (8) }

sub titles { return { 8 => 'Consuming' } }

sub measure {
    my ($self, $ctx, $run) = @_;
    my %figures;
    my $servers = $ctx->servers;
    my $events = $ctx->size(500_000, 10_000);
    fill($ctx, $servers, $events);
    consume($ctx, $servers, \%figures, 'loop', $events, sub { $ctx->program('group_loop', to_socket($servers), @_) });
    consume($ctx, $servers, \%figures, 'none', $events, sub { $ctx->program('consume', to_url($servers), @_, '--mode', 'none') });
    consume($ctx, $servers, \%figures, 'ioredis', $events, sub { $ctx->node('consume_ioredis.js', to_socket($servers), @_) });
    # last on this stream: what it leaves are half a million keys
    consume($ctx, $servers, \%figures, 'redis', $events, sub { $ctx->program('consume', to_url($servers), @_, '--mode', 'redis') });

    # a transaction that is durable for each event: fewer
    my $transactions = $ctx->size(50_000, 1_000);
    $servers->restart_redis;
    fill($ctx, $servers, $transactions);
    consume($ctx, $servers, \%figures, 'inbox', $transactions, sub {
        $ctx->program('consume', to_url($servers), @_, '--mode', 'inbox', '--inbox', $servers->conninfo);
    });
    $servers->stop;
    return \%figures;
}

sub to_socket { return ('--redis', $_[0]->redis_socket) }
sub to_url { return ('--redis', $_[0]->redis_url('unix')) }

sub fill {
    my ($ctx, $servers, $events) = @_;
    $ctx->say("$events entries");
    $ctx->program('wire', to_socket($servers), '--stream', STREAM, '--events', $events);
    return;
}

# Done is what Redis says is done: the group has read every entry, and none is pending.
sub consume {
    my ($ctx, $servers, $figures, $name, $events, $program) = @_;
    $ctx->say($name);
    $servers->redis('XGROUP', 'CREATE', STREAM, $name, 0);
    my $cpu = Bench::Servers::cpu_of($servers->redis_pid);
    my $result = $program->('--group', $name, '--events', $events);
    $cpu = Bench::Servers::cpu_of($servers->redis_pid) - $cpu;
    my ($pending) = @{ $servers->redis('XPENDING', STREAM, $name) };
    my %group = map { my %each = @$_; $each{name} eq $name ? %each : () } @{ $servers->redis('XINFO', 'GROUPS', STREAM) };
    my $read = $group{'entries-read'};
    die "$name: of $events entries " . ($read // 'an unknown number') . " were read and $pending not acknowledged\n"
        if $pending || !defined $read || $read != $events;
    $figures->{$name} = $result->{rate};
    $figures->{"${name}_cpu_us"} = $result->{cpu_us};
    $figures->{"${name}_redis_cpu_us"} = $cpu / $events * 1e6;
    $servers->redis('XGROUP', 'DESTROY', STREAM, $name);
    return;
}

sub lines {
    return (
        { what => 'no deduplication', figure => 'none', reference => 'loop', reference_is => 'a loop of raw commands', unit => 'events/s', at_least => 0.6 },
        { what => 'no deduplication', figure => 'none', reference => 'ioredis', reference_is => 'ioredis', unit => 'events/s', at_least => 5 },
        { what => 'deduplication in Redis', figure => 'redis', reference => 'loop', reference_is => 'a loop of raw commands', unit => 'events/s' },
        { what => 'inbox: a transaction for each event', figure => 'inbox', unit => 'events/s' },
        map { ({ what => "$_->[0], the consumer", figure => "$_->[1]_cpu_us", unit => 'µs of CPU an event' },
            { what => "$_->[0], Redis", figure => "$_->[1]_redis_cpu_us", unit => 'µs of CPU an event' }) }
            [ 'raw commands', 'loop' ], [ 'no deduplication', 'none' ], [ 'deduplication in Redis', 'redis' ], [ 'ioredis', 'ioredis' ]
    );
}

sub notes {
    return { 8 => <<'END' };
Half a million entries (50,000 for the inbox) are in the stream before; a group for each contender, one process for each, unix socket.
The handlers do nothing. All contenders handle every entry and acknowledge it afterwards; the end is that the group has read all
entries and none is pending.

- *The client*: default options but for the deduplication; four handler threads, order per aggregate, attempts counted, leases
  renewed, payloads checked to be JSON.
- *The loop of raw commands* (`src/group_loop.cpp`): `XREADGROUP COUNT 500` and one `XACK` for what came, two reads always on their way,
  nothing waits for the answer to an `XACK`; replies are parsed by hiredis' reader and looked at no further.
- *ioredis* (`peers/consume_ioredis.js`): a connection that reads `COUNT 500`, one that acknowledges; an async handler for each entry with its
  fields as an object, one `XACK` for the batch, the next read on its way meanwhile. The raw loop, which does nothing but read and
  acknowledge, is about three times as fast: five times is beyond this Redis.
END
}

1;
