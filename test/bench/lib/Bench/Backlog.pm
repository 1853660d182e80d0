# A backlog: events that were committed in transactions of a hundred while the sink was paused, and the way they go when it is
# resumed.
package Bench::Backlog;

use strict;
use warnings;

use Bench::Servers;

use constant STREAM => 'outbox:{billing}';

# once in a database
sub prepare {
    my ($ctx, $servers) = @_;
    $servers->execute(Bench::Context::slurp($ctx->here . '/load.sql'));
    return;
}

# So many events, from two sessions at once. That they need not wait for the log makes it quick; they are durable before the drain
# begins. CHECKPOINT, so that nobody writes meanwhile. Another procedure records them in another way.
sub load {
    my ($ctx, $servers, $events, $procedure) = @_;
    $procedure //= 'bench.emit';
    my $half = int($events / 2);
    my @sessions;
    for my $part ([ 0, $half ], [ $half, $events - $half ]) {
        push @sessions, $ctx->spawn([ "$servers->{bindir}/psql", '-XqAt', '-v', 'ON_ERROR_STOP=1', '-h', $servers->host, '-U', 'postgres',
            '-c', 'SET synchronous_commit = off', '-c', "CALL $procedure($part->[0], $part->[1])", 'postgres' ]);
    }
    $ctx->output($_) for @sessions;
    $servers->execute('CHECKPOINT');
    return;
}

# From outbox.resume() to the last entry: { rate, seconds, worker_cpu_us, postgres_cpu_us, redis_busy, rss }.
sub drain {
    my ($ctx, $servers, %options) = @_;
    my ($events, $transport) = @options{qw(events transport)};
    $servers->reset_outbox(transport => $transport);
    $servers->pause;
    $options{before_load}->() if $options{before_load};
    $ctx->say("$transport: $events events are committed");
    load($ctx, $servers, $events);
    $servers->restart_redis;
    $ctx->say("$transport: and drained");
    my ($worker, $redis) = ($servers->worker_pid, $servers->redis_pid);
    my $cpu = Bench::Servers::cpu_of($worker);
    my ($redis_cpu, $postgres_cpu) = (Bench::Servers::cpu_of($redis), $servers->cpu);
    my $rss = 0;
    my $began = Bench::Servers::now();
    $servers->resume;
    my $ended = $servers->await_entries(STREAM, $events, meanwhile => sub {
        my $now = Bench::Servers::rss_of($worker);
        $rss = $now if $now > $rss;
    });
    my $seconds = $ended - $began;
    $redis_cpu = Bench::Servers::cpu_of($redis) - $redis_cpu;
    $servers->flush;    # its last words count, too
    $cpu = Bench::Servers::cpu_of($worker) - $cpu;
    $postgres_cpu = $servers->cpu - $postgres_cpu;
    die "the worker was started again meanwhile\n" if $servers->worker_pid != $worker;
    return { rate => $events / $seconds, seconds => $seconds, worker_cpu_us => $cpu / $events * 1e6,
        postgres_cpu_us => $postgres_cpu / $events * 1e6,
        redis_busy => $redis_cpu / $seconds, rss => $rss };
}

1;
