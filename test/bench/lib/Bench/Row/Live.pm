# Eight clients that emit as fast as they can: with the worker sending all of it at the same time, and with the sink paused.
package Bench::Row::Live;

use strict;
use warnings;
use parent 'Bench::Row';

use Bench::Report;
use Bench::Servers;
use Bench::Transactions;

use constant STREAM => 'outbox:{billing}';

sub numbers { return 5 }
sub titles { return { 5 => 'What dispatching takes from the transactions' } }

sub measure {
    my ($self, $ctx, $run) = @_;
    my %samples;
    my $servers = $ctx->servers;
    Bench::Transactions::prepare($ctx, $servers);
    my $worker = $servers->worker_pid;
    for my $commit (qw(on off)) {
        # in turns: what the machine does otherwise changes from second to second
        for my $turn (1 .. $ctx->size(4, 1)) {
            for my $state ($turn % 2 ? qw(paused live) : qw(live paused)) {
                $ctx->say("synchronous_commit $commit, $state");
                $servers->resume;
                $servers->flush;
                $servers->pause if $state eq 'paused';
                my ($cpu, $redis, $batches) = counters($servers, $worker);
                my $done = Bench::Transactions::run($ctx, $servers, kind => 'emit', clients => 8, synchronous_commit => $commit,
                    seconds => $ctx->size(5, 1));
                push @{ $samples{"${commit}_${state}_tps"} }, $done->{tps};
                push @{ $samples{"${commit}_${state}_cpu_us"} }, $done->{cpu_us};
                next if $state eq 'paused';
                my $lag = $servers->value('SELECT lag_events FROM outbox.stat_sink');
                $servers->flush;
                my ($cpu_after, $redis_after, $batches_after) = counters($servers, $worker);
                push @{ $samples{"${commit}_worker_us"} }, ($cpu_after - $cpu) / $done->{transactions} * 1e6;
                push @{ $samples{"${commit}_redis_us"} }, ($redis_after - $redis) / $done->{transactions} * 1e6;
                push @{ $samples{"${commit}_batch"} }, $done->{transactions} / ($batches_after - $batches);
                push @{ $samples{"${commit}_lag"} }, $lag;
            }
        }
    }
    $servers->resume;
    $servers->flush;
    my ($entries, $events) = ($servers->redis('XLEN', STREAM), $servers->value('SELECT count(*) FROM outbox.stored_event'));
    die "$entries entries of $events events\n" if $entries != $events;
    die "the worker was started again meanwhile\n" if $servers->worker_pid != $worker;
    $servers->stop;
    return { map { $_ => Bench::Report::median(@{ $samples{$_} }) } keys %samples };
}

sub counters {
    my ($servers, $worker) = @_;
    return (Bench::Servers::cpu_of($worker), Bench::Servers::cpu_of($servers->redis_pid),
        $servers->value('SELECT batches FROM outbox.stat_sink'));
}

sub lines {
    my @lines;
    for my $commit (qw(on off)) {
        my $what = "`synchronous_commit` $commit";
        push @lines,
            { what => "$what: transactions", figure => "${commit}_live_tps", reference => "${commit}_paused_tps", reference_is => 'the sink paused',
                unit => '/s', at_least => 0.9 },
            { what => "$what: worker", figure => "${commit}_worker_us", unit => 'µs of CPU an event', at_most => 10 },
            { what => "$what: Redis", figure => "${commit}_redis_us", unit => 'µs of CPU an event' },
            { what => "$what: in a batch", figure => "${commit}_batch", unit => 'events' },
            { what => "$what: not yet sent when the clients stopped", figure => "${commit}_lag", unit => 'events' };
    }
    return @lines;
}

sub notes {
    return { 5 => <<'END' };
The transactions of row 3, from eight clients on a machine that they fill by themselves: what the worker and Redis need is taken from them. A
run is the median of four turns with and four without.
END
}

1;
