# Transactions at a steady rate, and how long their entries take to a reader that is blocked in XREAD.
package Bench::Commits;

use strict;
use warnings;

use Bench::Context;

use constant STREAM => 'outbox:{billing}';

# once in a database
sub prepare {
    my ($ctx, $servers) = @_;
    $servers->execute(Bench::Context::slurp($ctx->here . "/$_")) for 'load.sql', 'table.sql';
    return;
}

sub options {
    my ($ctx, $servers, @more) = @_;
    return ('--conninfo', $servers->conninfo, '--redis', $servers->redis_socket,
        '--samples', $ctx->size(4000, 200), '--warm-up', $ctx->size(200, 20), @more);
}

# with outbox.emit and the worker: what src/latency.cpp prints
sub measure { my ($ctx, $servers) = @_; return $ctx->program('latency', options($ctx, $servers, '--stream', STREAM)) }

# with the table and src/notify_relay.cpp
sub measure_relay {
    my ($ctx, $servers) = @_;
    my $relay = $ctx->begin('notify_relay', '--conninfo', $servers->conninfo, '--redis', $servers->redis_socket, '--stream', 'notify');
    my $result = $ctx->program('latency', options($ctx, $servers, '--stream', 'notify', '--then', 'NOTIFY bench_outbox',
        '--statement', 'INSERT INTO bench.outbox (event_type, aggregate_type, aggregate_id, payload) '
            . "VALUES ('billing.invoice.paid', 'invoice', \$2, \$1)"));
    $ctx->finish($relay, signal => 'TERM');
    return $result;
}

1;
