# A backlog that was committed while the sink was paused, from outbox.resume() to the last entry in the stream; next to it the wire,
# to the same Redis, right before. And what the worker needs for it: time of the processor, and memory.
package Bench::Row::Drain;

use strict;
use warnings;
use parent 'Bench::Row';

use Bench::Backlog;
use Bench::Servers;

use constant STREAM => 'outbox:{billing}';

sub numbers { return (1, 9) }

sub titles {
    return { 1 => 'Drain of a backlog', 9 => 'What the worker needs while it drains' };
}

sub measure {
    my ($self, $ctx, $run) = @_;
    my %figures;
    my $servers = $ctx->servers;
    Bench::Backlog::prepare($ctx, $servers);
    for my $transport (qw(unix tcp)) {
        # before and after: the machine is not the same at all times
        my @wires = ($self->wire($ctx, $servers, $transport));
        my $drained = Bench::Backlog::drain($ctx, $servers, events => $ctx->events, transport => $transport);
        push @wires, $self->wire($ctx, $servers, $transport);
        $figures{"${transport}_$_"} = $drained->{$_} for keys %$drained;
        $figures{"${transport}_wire"} = ($wires[0]{rate} + $wires[1]{rate}) / 2;
        $figures{"${transport}_bare_cpu_us"} = $self->wire($ctx, $servers, $transport, how => 'poll')->{cpu_us};
    }
    if ($ctx->big) {
        my $drained = Bench::Backlog::drain($ctx, $servers, events => 10 * $ctx->events, transport => 'unix');
        $figures{"big_$_"} = $drained->{$_} for keys %$drained;
        $figures{big_wire} = $self->wire($ctx, $servers, 'unix', events => 10 * $ctx->events)->{rate};
    }
    $servers->stop;
    return \%figures;
}

sub wire {
    my ($self, $ctx, $servers, $transport, %options) = @_;
    my $events = $options{events} // $ctx->events;
    $servers->pause;    # nobody else goes to this Redis
    $servers->restart_redis;
    $ctx->say("$transport: the wire");
    my $wire = $ctx->program('wire', '--how', $options{how} // 'spin', '--events', $events,
        '--redis', $transport eq 'tcp' ? $servers->redis_port : $servers->redis_socket);
    my $length = $servers->redis('XLEN', STREAM);
    die "the wire left $length entries\n" if $length != $events;
    return $wire;
}

sub lines {
    return (
        { what => 'drain, unix socket', figure => 'unix_rate', reference => 'unix_wire', reference_is => 'the wire', unit => 'events/s', at_least => 0.85 },
        { what => 'drain, TCP', figure => 'tcp_rate', reference => 'tcp_wire', reference_is => 'the wire', unit => 'events/s', at_least => 0.85 },
        { what => 'ten times the backlog, unix socket', figure => 'big_rate', reference => 'unix_rate', reference_is => 'the backlog itself', unit => 'events/s', at_least => 0.8 },
        { what => 'ten times the backlog, unix socket', figure => 'big_rate', reference => 'big_wire', reference_is => 'the wire', unit => 'events/s' },
        { what => 'the wire, ten times the events', figure => 'big_wire', reference => 'unix_wire', reference_is => 'the wire', unit => 'events/s' },
        { row => 9, what => 'worker, unix socket', figure => 'unix_worker_cpu_us', unit => 'µs of CPU an event', at_most => 0.6 },
        { row => 9, what => 'worker, TCP', figure => 'tcp_worker_cpu_us', unit => 'µs of CPU an event', at_most => 0.6 },
        { row => 9, what => 'the wire, waiting, unix socket', figure => 'unix_bare_cpu_us', unit => 'µs of CPU an event' },
        { row => 9, what => 'the wire, waiting, TCP', figure => 'tcp_bare_cpu_us', unit => 'µs of CPU an event' },
        { row => 9, what => 'Redis, unix socket', figure => 'unix_redis_busy', unit => 'of a core' },
        { row => 9, what => "worker's own memory at the most, backlog", figure => 'unix_rss', scale => 1 / 1024 / 1024, unit => 'MB' },
        { row => 9, what => "worker's own memory at the most, ten times the backlog", figure => 'big_rss', reference => 'unix_rss', reference_is => 'the backlog itself', scale => 1 / 1024 / 1024, unit => 'MB', at_most => 1.1 },
    );
}

sub notes {
    return {
        1 => <<'END',
The events were committed in transactions of a hundred while the sink was paused. The clock runs from `outbox.resume()`, with which the
worker connects, reconciles and begins, to the moment when the stream has all of them (`XLEN`, asked for 50 times a second). Redis is
started anew before each.

The wire is [`wire.cpp`](src/wire.cpp): the same fields, sizes and explicit IDs as raw `XADD`s on one connection, every byte of them in
memory before the clock starts, sent by 128 while the replies are received and compared with what must come. It never waits, which takes
a whole core more, and is what made Redis fastest; with `--how poll` it waits. It is measured right before and right after each drain, and
the reference is the mean of both. With ten times the events, what is stored
is several times `shared_buffers`, and Redis takes that much more new memory: in a profile of a drain of five million the kernel's clearing
of pages for Redis is the greatest item (`clear_page_erms`, 18 % of the samples of Redis and the worker together).
END
        9 => <<'END',
User and system time of the worker from before `outbox.resume()` until `outbox.flush()` has returned. Memory is what is the process's own
(`RssAnon`), looked at with every `XLEN`, and its greatest value.

The wire, waiting (`wire --how poll`), does nothing but write what is in memory and read what comes back: what it needs is the kernel's
copy into and out of the socket, and the worker cannot need less. `perf` shows the same: in a worker that drains, half of the samples are
in `_copy_from_iter`, under `send()`; no function of its own or of PostgreSQL's has more than 4 %.
END
    };
}

sub bars {
    return { drain => [
        [ 'the wire, unix socket', 'unix_wire', 'limit' ], [ 'outbox, unix socket', 'unix_rate', 'ours' ],
        [ 'the wire, TCP', 'tcp_wire', 'limit' ], [ 'outbox, TCP', 'tcp_rate', 'ours' ],
    ] };
}

1;
