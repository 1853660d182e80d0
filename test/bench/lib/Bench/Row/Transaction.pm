# What a transaction costs that changes something and says so: with outbox.emit, and with the INSERT that one writes by hand.
package Bench::Row::Transaction;

use strict;
use warnings;
use parent 'Bench::Row';

use Bench::Transactions;

sub numbers { return 3 }
sub titles { return { 3 => 'A transaction with an event' } }

# more than others: what many processes on few cores do to each other differs from run to run
sub runs { my ($self, $ctx) = @_; return $ctx->runs < 3 || $ctx->runs > 5 ? $ctx->runs : 5 }

my @kinds = qw(alone nothing emit table);

# protocol, synchronous_commit, clients
my @cells = map { my $commit = $_; map { [ 'prepared', $commit, $_ ] } 1, 4, 8 } qw(on off);
push @cells, [ 'extended', 'on', 4 ], [ 'extended', 'off', 4 ];

sub measure {
    my ($self, $ctx, $run) = @_;
    my %figures;
    my $servers = $ctx->servers;
    Bench::Transactions::prepare($ctx, $servers);
    $servers->execute("SELECT outbox.emit('billing.invoice.begun', '{}')");
    $servers->pause;
    for my $cell ($ctx->quick ? $cells[1] : @cells) {
        my ($protocol, $commit, $clients) = @$cell;
        my $name = join '_', @$cell;
        $ctx->say("$protocol statements, synchronous_commit $commit, $clients clients");
        my %cpu;
        for my $kind (map { $kinds[ ($run + $_) % @kinds ] } 0 .. $#kinds) {
            my $done = Bench::Transactions::run($ctx, $servers, kind => $kind, protocol => $protocol, synchronous_commit => $commit,
                clients => $clients, seconds => $ctx->size(4, 1));
            $figures{"${name}_${kind}_tps"} = $done->{tps};
            $figures{"${name}_${kind}_cpu_us"} = $cpu{$kind} = $done->{cpu_us};
        }
        $figures{"${name}_${_}_added_us"} = $cpu{$_} - $cpu{alone} for qw(nothing emit table);
    }
    my $events = $servers->value('SELECT count(*) FROM outbox.stored_event');
    die "there are only $events events\n" if $events < 2;
    $servers->stop;
    return \%figures;
}

sub lines {
    my @lines;
    for my $cell (@cells) {
        my ($protocol, $commit, $clients) = @$cell;
        my $name = join '_', @$cell;
        my $what = ($clients == 1 ? '1 client' : "$clients clients") . ", `synchronous_commit` $commit"
            . ($protocol eq 'extended' ? ', parsed each time' : '');
        my %hand = (reference_is => 'by hand');
        push @lines, { what => "$what: transactions", figure => "${name}_emit_tps", reference => "${name}_table_tps", %hand, unit => '/s', at_least => 1 },
            { what => "$what: backends", figure => "${name}_emit_cpu_us", reference => "${name}_table_cpu_us", %hand, unit => 'µs of CPU', at_most => 0.6 },
            { what => "$what: of that, for the event", figure => "${name}_emit_added_us", reference => "${name}_table_added_us", %hand,
                unit => 'µs of CPU', at_most => 0.6 };
        for ([ emit => 'with `emit`' ], [ table => 'by hand' ]) {
            my ($kind, $with) = @$_;
            push @lines, { what => "$what: transactions, $with", figure => "${name}_${kind}_tps", reference => "${name}_alone_tps",
                    reference_is => 'the business INSERT alone', unit => '/s' },
                { what => "$what: backends, $with", figure => "${name}_${kind}_cpu_us", reference => "${name}_alone_cpu_us",
                    reference_is => 'the business INSERT alone', unit => 'µs of CPU' };
        }
        push @lines, { what => "$what: a statement that does nothing", figure => "${name}_nothing_added_us", unit => 'µs of CPU' };
    }
    return @lines;
}

sub notes {
    return { 3 => <<'END' };
`BEGIN`, an `INSERT` into a table with a sequence and a primary key, the event, `COMMIT`: each a message of its own, from pgbench, with
parameters as text. Statements are prepared once unless it says that they are parsed each time (`-M prepared`, `-M extended`). The sink is
paused; what the worker takes is another row. By hand, the event is a row with a key from a sequence, `gen_random_uuid()`, payload and headers as
`jsonb`, and a partial index on what is not published. CPU is user and system time of pgbench's backends for one transaction.

*For the event* is what it adds to the business INSERT alone. A statement that does nothing (`SELECT num_nulls(…)` of the same parameters)
is the least that any SELECT can add. The business INSERT alone takes more than 0.6 of what it takes with the event by hand: as a share of
the whole, that goal is out of reach for any way to record an event. Of what `emit` itself adds, a row and its index entry in the
storage engine are the most.
END
}

1;
