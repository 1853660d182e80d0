# The story that scripts/demo tells: transactions on the left, the entries that arrive on the right, and in the middle of it
# a consumer, the worker and Redis are killed. The servers run already; the folder of both is the argument.
use strict;
use warnings;

use Demo::Load;
use Demo::Screen;
use Demo::Stage;
use Demo::Verdict;

my $samples = 1000;     # deposits that are timed
my $bulk = 20_000;      # wallets opened by one transaction
my (@latencies, $load);

sub median_ms { return 1000 * Demo::Verdict::percentile(0.5, @_) }

sub all_is_well {
    chapter('All is well');
    paragraph(<<'TEXT');
Six wallets are opened and used. Some transactions roll back, one is refused because the wallet has too little; a savepoint
undoes a part (in brackets); some are prepared and end later. Nothing of what was undone may arrive on the right.
TEXT
    columns('transaction', 'entry, as a blocked XREAD gets it');
    open_wallets();
    scenes(20);
    return;
}

sub how_long_it_takes {
    chapter('How long does it take?');
    paragraph("$samples deposits, one after the other, from the return of COMMIT to the return of XREAD.");
    @latencies = time_deposits($samples);
    note(sprintf 'p50 %.1f ms, p99 %.1f ms of %s, with those above; COMMIT itself took %.1f ms (p50).', median_ms(@latencies),
        1000 * Demo::Verdict::percentile(0.99, @latencies), thousands(scalar @latencies), median_ms(commit_times()));
    return;
}

sub a_consumer_dies {
    chapter('A consumer dies');
    paragraph(<<'TEXT');
Two processes of a service share the streams as one consumer group. For each event they write a line of a statement, in one
transaction with the event's id. From here on three more sessions work in the background, as fast as they can; their entries are
counted and not shown. In the middle of it one of the two processes is killed, and a little later the other.
TEXT
    start_service(2);
    $load = start_load(3);
    columns('transaction', 'entry');
    scenes(4);
    my $before = lines_written();
    wait_briefly(sub { lines_written() - $before }, 100);
    alarm(sprintf 'consumer %d killed with -9', kill_consumer());
    scenes(3);
    start_consumer();
    scenes(2);
    alarm(sprintf 'consumer %d killed with -9', kill_consumer());
    scenes(3);
    start_consumer();
    note(sprintf 'Others took over what the two had begun: %s lines are written.', thousands(lines_written()));
    return;
}

sub the_worker_dies {
    chapter('The worker dies');
    paragraph(<<"TEXT");
One transaction is prepared and left so. Then one opens ${\thousands($bulk)} wallets, and as soon as their entries begin to
arrive the worker is killed. PostgreSQL restarts itself, so the service loses its database for a moment, too.
TEXT
    columns('transaction', 'entry');
    scenes(6);
    my $prepared = leave_prepared('lea');
    my $worker = stat_sink()->{pid};
    my $before = entries_in_redis();
    open_many($bulk);
    my $arrived = wait_briefly(sub { entries_in_redis() - $before }, $bulk / 10);
    kill_9($worker, qr/postgres/);
    alarm(sprintf 'worker %d killed with -9, %s entries after that COMMIT', $worker, thousands($arrived));
    scenes(2);
    note("#$prepared->{number} was prepared before the crash and is committed after it:");
    end_prepared($prepared, 'lea');
    scenes(8);
    catch_up();
    my $stat = stat_sink();
    note(sprintf 'Now there are %s entries. The new worker (%d) sent %s again that were there already: Redis refused them, since '
        . 'their IDs were taken.', thousands(entries_in_redis()), $stat->{pid}, thousands($stat->{duplicates_rejected}));
    return;
}

sub redis_dies {
    chapter('Redis dies');
    paragraph('Nobody waits for Redis: transactions go on as before, and their events stay in the database until it is back.');
    columns('transaction', 'entry');
    scenes(3);
    my $usual = median_ms(commit_times());
    alarm(sprintf 'Redis (%d) killed with -9', kill_redis());
    scenes(10);
    my $stat = stat_sink();
    note(sprintf 'COMMIT took %.1f ms meanwhile, %.1f ms before (p50). outbox.stat_sink: %s, %s events behind, the oldest %.1f s '
        . 'old; last error: %s.', median_ms(commit_times()), $usual, $stat->{state}, thousands($stat->{lag_events}),
        $stat->{lag_seconds}, $stat->{last_error} // 'none');
    start_redis();
    alarm('Redis started again, with its data (appendfsync always)');
    scenes(3);
    catch_up();
    note(sprintf 'All caught up: %s entries.', thousands(entries_in_redis()));
    return;
}

sub redis_forgets {
    chapter('Redis forgets everything');
    paragraph(<<'TEXT');
Killed again, and this time its files are removed. The worker notices before it appends anything new, and fills the streams
again from the events that the database keeps, each at the ID that it had.
TEXT
    columns('transaction', 'entry');
    scenes(3);
    my $pid = kill_redis('and its data');
    my %before = map { $_->{event_id} => $_->{id} } entries_read();
    alarm(sprintf 'Redis (%d) killed with -9, its data removed: %s entries', $pid, thousands(scalar keys %before));
    alarm(sprintf 'consumer %d killed with -9', kill_consumer());
    scenes(4);
    start_redis();
    start_consumer();
    alarm('Redis started again, empty, and the consumer');
    scenes(4);
    catch_up();
    my %after = map { $_->{event_id} => $_->{id} } entries_stored();
    my $same = grep { ($after{$_} // '') eq $before{$_} } keys %before;
    note(sprintf '%s of %s entries are back at the ID that they had (outbox.stat_sink: %s healed), and %s new ones follow.',
        thousands($same), thousands(scalar keys %before), thousands(stat_sink()->{healed}),
        thousands(keys(%after) - keys %before));
    return;
}

# true if they are in order
sub the_books {
    $load->stop;
    catch_up();
    note('The service has not handled everything within a minute.') unless catch_up_service();
    my $count = Demo::Verdict::compare(
        ledger => ledger(),
        entries => [ entries_stored() ],
        seen => [ entries_read() ],
        commits => [ commits(), @{ $load->{commits} } ],
        rolled_back => [ rolled_back(), @{ $load->{rolled_back} } ],
        statement => statement(),
    );
    my $row = sub { my ($name, $what, $remark) = @_; table_row($name, thousands($count->{$what}), $remark) };
    my $zero = sub { my ($name, $what, $remark) = @_; table_row($name, thousands($count->{$what}), $remark, !$count->{$what}) };

    chapter('The books');
    $row->('committed', 'committed', 'events');
    $row->('published', 'published', 'entries in the streams');
    $zero->('lost', 'lost', 'in no stream, or never read');
    $zero->('duplicated', 'duplicated', 'twice in a stream, or read twice');
    $zero->('out of order, per wallet', 'wallet_order', 'by the count kept under its row lock');
    $zero->('out of order, by entry ID', 'id_order', 'against the COMMITs of each session');
    $row->('rolled back', 'rolled_back', 'events, with those before ROLLBACK TO');
    $zero->('rolled back but published', 'ghosts', 'entries that nobody committed');
    $row->('handled', 'handled', 'lines that the service wrote');
    $zero->('not handled', 'unhandled', 'events without a line');
    $zero->('handled twice', 'handled_twice', 'events with more than one line');
    $zero->('handled out of order', 'handled_order', 'per wallet, in the order of the lines');
    my $time = sub { return sprintf '%.1f ms', 1000 * Demo::Verdict::percentile($_[0], @latencies) };
    table_row('COMMIT to XREAD, p50', $time->(0.5), sprintf '%s samples, nothing killed', thousands(scalar @latencies));
    table_row('COMMIT to XREAD, p99', $time->(0.99), sprintf '%s transactions in all', thousands(transactions()));
    note($_) for @{ $count->{details} };
    return !$count->{bad} && $count->{published} > 0;
}

my $good = eval {
    set_stage(@ARGV);
    all_is_well();
    how_long_it_takes();
    a_consumer_dies();
    the_worker_dies();
    redis_dies();
    redis_forgets();
    the_books() || die "The books do not balance.\n";
};
close_line();
print STDERR "\n$@" unless $good;
exit($good ? 0 : 1);
