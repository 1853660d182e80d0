# What events leave behind in the database: while they are kept, and after.
package Bench::Row::Storage;

use strict;
use warnings;
use parent 'Bench::Row';
use Time::HiRes qw(sleep);

use Bench::Backlog;
use Bench::Servers;
use Bench::Transactions;

sub numbers { return 7 }
sub titles { return { 7 => 'Storage' } }

use constant PER_TRANSACTION => 100;

my $own = join ', ', map { "('outbox.event_$_'), ('outbox.tick_$_')" } 0 .. 7;

sub measure {
    my ($self, $ctx, $run) = @_;
    my $events = $ctx->size(2_000_000, 20_000);
    my %figures;
    my $servers = $ctx->servers(postgres => { 'outbox.poll_interval' => '100ms' });
    Bench::Transactions::prepare($ctx, $servers);
    $servers->execute('CREATE EXTENSION pgstattuple', Bench::Context::slurp($ctx->here . '/storage.sql'));

    $ctx->say("$events events are emitted and published");
    Bench::Backlog::load($ctx, $servers, $events);
    $servers->flush;
    $figures{outbox_bytes} = size($servers, $own) / $events;
    $figures{outbox_dead} = dead($servers, $own);
    my $stored = $servers->value('SELECT count(*) FROM outbox.stored_event');
    die "there are $stored events\n" if $stored != $events;

    $ctx->say('and dropped');
    my $began = Bench::Servers::now();
    $servers->execute("ALTER SYSTEM SET outbox.retention = '1s'", 'SELECT pg_reload_conf()');
    # Seen by its size: to read it would hold it back. Emission goes on elsewhere; what was confirmed last waits for what comes next.
    while ($servers->value("SELECT pg_relation_size('outbox.event_0')") > 0) {
        die "the events are not dropped: " . ($servers->value('SELECT retention_held_back_by FROM outbox.stat_sink') // 'nothing holds them') . "\n"
            if Bench::Servers::now() - $began > 60;
        $servers->execute("SELECT outbox.emit('billing.invoice.begun', '{}')");
        sleep 0.05;
    }
    $figures{outbox_dropped} = Bench::Servers::now() - $began;
    $figures{outbox_left} = size($servers, $own);

    $ctx->say("$events rows are written by hand");
    my $table = "('bench.outbox')";
    $servers->execute('SET synchronous_commit = off', "CALL bench.write(0, $events, " . PER_TRANSACTION . ')');
    $figures{table_bytes} = size($servers, $table) / $events;
    $ctx->say('and published');
    $servers->execute('CALL bench.publish(' . PER_TRANSACTION . ')');
    my $left = $servers->value('SELECT count(*) FROM bench.outbox WHERE published_at IS NULL');
    die "$left rows are not published\n" if $left;
    $figures{table_published_bytes} = size($servers, $table) / $events;
    # as autovacuum counts; many have lost their bytes to pruning, but not their place and their entries in the indexes
    $servers->execute('SELECT pg_stat_force_next_flush()');
    $figures{table_dead} = $servers->value("SELECT pg_stat_get_dead_tuples('bench.outbox'::regclass)");
    $ctx->say('and deleted');
    $began = Bench::Servers::now();
    $servers->execute('DELETE FROM bench.outbox');
    $figures{table_deleted} = Bench::Servers::now() - $began;
    $figures{table_left} = size($servers, $table);
    $servers->stop;
    return \%figures;
}

sub size { my ($servers, $tables) = @_; return $servers->value("SELECT sum(pg_total_relation_size(name::regclass)) FROM (VALUES $tables) t (name)") }

# every page is read, not the statistics
sub dead { my ($servers, $tables) = @_; return $servers->value("SELECT sum((pgstattuple(name::regclass)).dead_tuple_count) FROM (VALUES $tables) t (name)") }

sub lines {
    return (
        { what => 'dead tuples when all is published', figure => 'outbox_dead', unit => '', at_most => 0 },
        { what => 'the same by hand, but for those that autovacuum removed', figure => 'table_dead', unit => '' },
        { what => 'an event when it is published', figure => 'outbox_bytes', reference => 'table_published_bytes', reference_is => 'by hand',
            unit => 'bytes', at_most => 0.8 },
        { what => 'an event before it is published', figure => 'outbox_bytes', reference => 'table_bytes', reference_is => 'by hand',
            unit => 'bytes' },
        { what => 'all of it after retention', figure => 'outbox_left', reference => 'table_left', reference_is => 'by hand, after DELETE',
            unit => 'kB', scale => 1 / 1024 },
        { what => 'from a retention of a second until it is so', figure => 'outbox_dropped', unit => 's' },
        { what => 'DELETE by hand', figure => 'table_deleted', unit => 's' },
    );
}

sub notes {
    return { 7 => <<'END' };
With all indexes, and of outbox with its ticks. By hand an event is published by an UPDATE of a hundred rows at a time, each of which leaves a
dead row and entries in both indexes; autovacuum is on and comes when it comes. outbox truncates the partition, at once and without a
VACUUM, when the worker looks after the retention (here a second) is over; what is left then is a page for each index, and the few
events that were emitted meanwhile.
END
}

1;
