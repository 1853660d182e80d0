# Transactions of one business INSERT and what records its event: with outbox.emit, with the table that one writes by hand, with a
# function that does nothing, or with nothing at all. pgbench runs them; its parameters go to the server as text, as most drivers
# send them.
package Bench::Transactions;

use strict;
use warnings;
use Time::HiRes qw(sleep);

use Bench::Context;
use Bench::Servers;

my $payload = '{"invoice":"000000000001","amount":"12.50","currency":"EUR","note":"' . 'thank you for your order; ' x 4 . 'please pay at once"}';

my %variables = (customer => 'Ada Lovelace', event_type => 'billing.invoice.paid', aggregate_type => 'invoice', headers => '{}',
    payload => $payload);

# Each is one statement more, with the same parameters.
my %statements = (
    emit => 'SELECT outbox.emit(:event_type, :payload, :aggregate_id, :aggregate_type, 1, :headers);',
    table => 'INSERT INTO bench.outbox (event_type, payload, aggregate_id, aggregate_type, version, headers) '
        . 'VALUES (:event_type, :payload, :aggregate_id, :aggregate_type, 1, :headers);',
    nothing => 'SELECT num_nulls(:event_type::text, :payload::text, :aggregate_id::text, :aggregate_type::text, 1, :headers::jsonb);',
    alone => '',
);

# pgbench has no strings that change: an aggregate's id is four digits, and not "i" and three of them
sub script {
    my ($kind) = @_;
    return <<"END";
\\set number random(1, 1000000000)
\\set aggregate_id random(1000, 1999)
BEGIN;
INSERT INTO bench.invoice (number, customer, amount) VALUES (:number, :customer, 12.50);
$statements{$kind}
COMMIT;
END
}

# once in a database
sub prepare {
    my ($ctx, $servers) = @_;
    $servers->execute(Bench::Context::slurp($ctx->here . "/$_")) for 'load.sql', 'table.sql';
    return;
}

# { tps, cpu_us: what the backends needed for a transaction, transactions }
#
#   kind => emit | table | nothing | alone; clients; seconds; synchronous_commit => on | off; protocol => prepared | extended
sub run {
    my ($ctx, $servers, %options) = @_;
    my $file = $servers->dir . "/$options{kind}.sql";
    open my $out, '>', $file or die "$file: $!\n";
    print $out script($options{kind});
    close $out or die "$file: $!\n";
    my $clients = $options{clients};
    my @pgbench = ('env', "PGOPTIONS=-c synchronous_commit=$options{synchronous_commit}", "$servers->{bindir}/pgbench", '-n',
        '-h', $servers->host, '-U', 'postgres', '-f', $file, '-M', $options{protocol} // 'prepared', '-c', $clients,
        '-j', $clients > 1 ? 2 : 1, '-T', $options{seconds}, (map { ('-D', "$_=$variables{$_}") } sort keys %variables), 'postgres');
    my ($cpu, $text);
    # once more, where the machine stood still for as long as it ran
    for (1 .. 3) {
        my $running = $ctx->spawn([@pgbench]);
        $cpu = backend_cpu($servers, $clients, $options{seconds});
        $text = $ctx->output($running, seconds => $options{seconds} + 60);
        last if defined $cpu && $text =~ /^tps = /m;
    }
    die "pgbench was not seen while it ran\n" unless defined $cpu;
    my ($tps) = $text =~ /^tps = ([0-9.]+)/m or die "pgbench said no tps: $text\n";
    my ($transactions) = $text =~ /^number of transactions actually processed: (\d+)/m;
    my ($failed) = $text =~ /^number of failed transactions: (\d+)/m;
    die "pgbench: $failed transactions failed\n" if $failed;
    return { tps => $tps, transactions => $transactions, cpu_us => $cpu / $transactions * 1e6 };
}

# What pgbench's backends have needed when they end, in seconds. They are asked until they are gone, more often at the end. undef
# when they were not there at once.
sub backend_cpu {
    my ($servers, $clients, $seconds) = @_;
    my $began = Bench::Servers::now();
    my $pids = [];
    while (@$pids < $clients) {
        return undef if Bench::Servers::now() - $began > $seconds + 10;
        sleep 0.02;
        $pids = $servers->connection->selectcol_arrayref("SELECT pid FROM pg_stat_activity WHERE application_name = 'pgbench'");
    }
    my %cpu = map { $_ => 0 } @$pids;
    while (1) {
        my $alive = 0;
        for my $pid (@$pids) {
            my $now = eval { Bench::Servers::cpu_of($pid) } // next;
            $cpu{$pid} = $now;
            $alive++;
        }
        last unless $alive;
        die "pgbench did not end\n" if Bench::Servers::now() - $began > $seconds + 60;
        sleep(Bench::Servers::now() - $began < $seconds - 0.5 ? 0.2 : 0.005);
    }
    my $sum = 0;
    $sum += $_ for values %cpu;
    return $sum;
}

1;
