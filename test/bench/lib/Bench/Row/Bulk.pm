# Many events in one statement.
package Bench::Row::Bulk;

use strict;
use warnings;
use parent 'Bench::Row';

use Bench::Servers;
use Bench::Transactions;

sub numbers { return 4 }
sub titles { return { 4 => 'Many events in one statement' } }

my $emit = "outbox.emit('billing.invoice.paid', bench.payload(n), 'i' || n % 1000, 'invoice', 1, '{}')";

my %statements = (
    emit => "SELECT $emit FROM generate_series(1, :events) n",
    counted => "SELECT count($emit) FROM generate_series(1, :events) n",
    table => 'INSERT INTO bench.outbox (event_type, payload, aggregate_id, aggregate_type, version, headers) '
        . "SELECT 'billing.invoice.paid', bench.payload(n)::jsonb, 'i' || n % 1000, 'invoice', 1, '{}' FROM generate_series(1, :events) n",
);

sub measure {
    my ($self, $ctx, $run) = @_;
    my %figures;
    my @kinds = sort keys %statements;
    # each comes first once in three runs, and finds the server as it was after its start
    for my $kind (map { $kinds[ ($run + $_) % @kinds ] } 0 .. $#kinds) {
        my $servers = $ctx->servers;
        Bench::Transactions::prepare($ctx, $servers);
        $servers->pause;
        $ctx->say($kind);
        $servers->execute('CHECKPOINT');
        my $began = Bench::Servers::now();
        $ctx->command([ "$servers->{bindir}/psql", '-XqAt', '-v', 'ON_ERROR_STOP=1', '-h', $servers->host, '-U', 'postgres',
            '-o', '/dev/null', '-c', $statements{$kind} =~ s/:events/$ctx->events/er, 'postgres' ]);
        $figures{"${kind}_rate"} = $ctx->events / (Bench::Servers::now() - $began);
        my $events = $servers->value('SELECT count(*) FROM ' . ($kind eq 'table' ? 'bench.outbox' : 'outbox.stored_event'));
        die "there are $events events\n" if $events != $ctx->events;
        $servers->stop;
    }
    return \%figures;
}

sub lines {
    my %more = (reference => 'table_rate', reference_is => '`INSERT … SELECT`', unit => 'events/s', at_least => 1.3);
    return (
        { what => '`SELECT outbox.emit(…) FROM generate_series(…)`', figure => 'emit_rate', %more },
        { what => '`SELECT count(outbox.emit(…)) FROM generate_series(…)`', figure => 'counted_rate', %more },
    );
}

sub notes {
    return { 4 => "From psql, which throws away what it gets: of the first statement the events' ids, of the others nothing to speak of.\n" };
}

1;
