# The story that scripts/demo tells: transactions on the left, the entries that arrive on the right, and in the middle of it
# the worker and Redis are killed. The servers run already; the folder of both is the argument.
use strict;
use warnings;
use Redis;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC sleep);

use Demo::Load;
use Demo::Readers;
use Demo::Screen;
use Demo::Session;
use Demo::Verdict;

my ($dir) = @ARGV;
my $pace = 0.11;         # seconds from one transaction to the next: to be read while it runs
my $samples = 1000;      # deposits that are timed
my $bulk = 20_000;       # wallets opened by one transaction
my @streams = ('outbox:{wallet}', 'outbox:{transfer}');

my ($session, $readers, $load);
my $nothing = qr/^$/;
our $shown = qr/^[a-z]{3}$/;    # the wallets whose entries are printed one by one
$SIG{INT} = $SIG{TERM} = $SIG{HUP} = sub { exit 130 };
my $owner = $$;
END {
    my $status = $?;
    if ($$ == $owner) {
        close_line();
        $_->end for grep { $_ } $load, $readers;
    }
    $? = $status;
}

# what is known for the verdict
my (@commits, @rolled_back, %committed_at, %arrived_at);
my $quiet = 1;           # nothing is killed: times count

sub now { return clock_gettime(CLOCK_MONOTONIC) }
sub redis { return Redis->new(sock => "$dir/redis.sock", reconnect => 10, every => 20_000) }

# waits that long for entries, and prints those of the wallets that are shown
sub watch {
    my ($seconds) = @_;
    my $until = now() + $seconds;
    do {
        # entries of two streams come through two pipes: a moment for the other one, where it is to be looked at
        for my $entry ($readers->next_entries($until, $shown eq $nothing ? 0 : 0.01)) {
            my $committed_at = $committed_at{ $entry->{event_id} };
            $arrived_at{ $entry->{event_id} } = $entry->{at} if $quiet;
            entry(@$entry{qw(id type wallet n amount)}, $committed_at ? $entry->{at} - $committed_at : undef)
                if $entry->{wallet} =~ $shown;
        }
        $load->drain if $load;
    } while now() < $until;
    return;
}

sub watch_silently { my ($seconds) = @_; local $shown = $nothing; watch($seconds); return }

sub poll_until {
    my ($what, $sub, $seconds) = @_;
    my $until = now() + ($seconds // 30);
    while (1) {
        my $value = eval { $sub->() };
        return $value if $value;
        die "timed out waiting until $what\n" if now() > $until;
        watch(0.02);
    }
}

# transactions

my $number = 0;
my (@took, @held);       # seconds of each COMMIT; wallets that a prepared transaction has locked

# what a transaction does: [ words, statement... ]
sub opened { my ($wallet) = @_; return [ "$wallet opened", "SELECT open_wallet('$wallet')" ] }
sub plus { my ($wallet, $amount) = @_; return [ "$wallet +$amount", "SELECT deposit('$wallet', $amount)" ] }
sub pays { my ($from, $to, $amount) = @_; return [ "$from to $to $amount", "SELECT transfer('$from', '$to', $amount)" ] }

sub undone {
    my ($step) = @_;
    my ($words, @statements) = @$step;
    return [ "($words undone)", 'SAVEPOINT s', @statements, 'ROLLBACK TO s' ];
}

sub keep_account {
    my ($done) = @_;
    if (Demo::Session::is_committed($done)) {
        push @commits, [ $done->{began}, @{ $done->{events} } ];
        push @took, $done->{took} if $done->{took};
        $committed_at{$_} = $done->{committed_at} for @{ $done->{events} };
        push @rolled_back, @{ $done->{undone} };
    } elsif (Demo::Session::is_rolled_back($done)) {
        push @rolled_back, @{ $done->{events} }, @{ $done->{undone} };
    }
    return;
}

# one line on the left, and a moment for what arrives
sub run {
    my ($end, @steps) = @_;
    my @words = map { $_->[0] } @steps;
    my $began = @commits;
    my $done = $session->transaction($end, map { @$_[ 1 .. $#$_ ] } @steps);
    @$done{qw(number began)} = (++$number, $began);
    transaction($number, join(', ', @words), $done->{end});
    keep_account($done);
    watch($pace);
    recover($done) if $done->{end} eq 'LOST';
    return $done;
}

sub second_phase {
    my ($done, $end) = @_;
    $session->finish($done, $end);
    transaction($done->{number}, 'second phase', $done->{end});
    keep_account($done);
    watch($pace);
    recover($done) if $done->{end} eq 'LOST';
    return;
}

# the bulk: as one transaction, whose events are in the ledger and not counted one by one
sub open_many {
    my $done = $session->transaction('COMMIT', "SELECT open_wallets('bulk-', $bulk)");
    transaction(++$number, thousands($bulk) . ' wallets opened', $done->{end});
    close_line();
    return;
}

sub recover {
    my ($done) = @_;
    my $before = now();
    $session->settle($done);
    keep_account($done);
    note(sprintf 'The connection was lost: PostgreSQL takes a killed process for a crash and restarts itself. It is back after '
        . '%.1f s; #%d is known to have ended with %s.', now() - $before, $done->{number}, $done->{end});
    return;
}

my @wallets = qw(ada ben eve ian kim lea);
my $turn = 0;

# another wallet each time, none that a prepared transaction has locked
sub pick {
    my ($step) = @_;
    while (1) {
        $turn += $step;
        my $wallet = $wallets[ $turn % @wallets ];
        return $wallet unless grep { $_ eq $wallet } @held;
    }
}

# what life brings, in turn
my @kinds = (
    sub { run('COMMIT', plus(pick(1), 40)) },
    sub { my $from = pick(1); run('COMMIT', pays($from, pick(1), 15)) },
    sub { run('ROLLBACK', plus(pick(1), 70)) },
    sub { my $wallet = pick(1); run('COMMIT', plus($wallet, 25), undone(plus(pick(1), 99))) },
    sub { two_phases('COMMIT PREPARED') },
    sub { run('COMMIT', plus(pick(1), 60)) },
    # more than there is: the constraint on the balance refuses it
    sub { my $from = pick(1); run('COMMIT', pays($from, pick(1), 9999)) },
    sub { my $wallet = pick(1); run('COMMIT', undone(plus($wallet, 50)), plus($wallet, 5)) },
    sub { two_phases('ROLLBACK PREPARED') },
    sub { my $from = pick(1); run('COMMIT', pays($from, pick(1), 10)) },
);
my $kind = 0;

sub two_phases {
    my ($end) = @_;
    my $wallet = pick(1);
    my $done = run('PREPARE', plus($wallet, 30));
    return unless $done->{end} eq 'PREPARED';
    push @held, $wallet;
    run('COMMIT', plus(pick(1), 20));
    second_phase($done, $end);
    pop @held;
    return;
}

sub scenes {
    my ($many) = @_;
    $kinds[ $kind++ % @kinds ]->() for 1 .. $many;
    return;
}

# servers

sub stat_sink { return $session->row('SELECT * FROM outbox.stat_sink') }
sub entries_in_redis { my $redis = redis(); my $sum = 0; $sum += $redis->xlen($_) for @streams; return $sum }

# until every event that is committed now is published, and the readers have read it
sub catch_up {
    note('Not everything was published within 30 s.') unless $session->value("SELECT outbox.flush('30 s')");
    my $until = now() + 10;
    do { watch(0.05) } while @{ $readers->{entries} } < entries_in_redis() && now() < $until;
    return;
}

# between asking for a pid and killing it, the process may be gone and the pid be somebody else's
sub kill_9 {
    my ($pid, $program) = @_;
    open my $file, '<', "/proc/$pid/comm" or die "process $pid has gone\n";
    die "process $pid is no $program\n" unless readline($file) =~ $program;
    kill 'KILL', $pid or die "kill $pid: $!\n";
    return;
}

sub kill_redis {
    open my $file, '<', "$dir/redis.pid" or die "redis.pid: $!\n";
    chomp(my $pid = readline $file);
    kill_9($pid, qr/redis|valkey/);
    unlink "$dir/redis.pid", "$dir/redis.sock";
    return $pid;
}

sub start_redis {
    chdir $dir;
    system($ENV{REDIS_SERVER}, "$dir/redis.conf") == 0 or die "could not start Redis\n";
    # PING is answered also while the data is being loaded
    poll_until('Redis is back', sub { Redis->new(sock => "$dir/redis.sock")->exists('a'); 1 });
    return;
}

# the story

$session = Demo::Session->new($dir, 'demo');
{
    open my $file, '<', $INC{'Demo/Session.pm'} =~ s/Session\.pm/wallets.sql/r or die "wallets.sql: $!";
    local $/;
    $session->execute(readline $file);
}
$readers = Demo::Readers->new("$dir/redis.sock", @streams);

chapter('All is well');
paragraph(<<'TEXT');
Six wallets are opened and used. Some transactions roll back, one is refused because the wallet has too little; a savepoint
undoes a part (in brackets); some are prepared and end later. Nothing of what was undone may arrive on the right.
TEXT
columns('transaction', 'entry, as a blocked XREAD gets it');
run('COMMIT', opened($_), plus($_, 100)) for @wallets;
scenes(20);

chapter('How long does it take?');
paragraph("$samples deposits, one after the other, timed from the return of COMMIT to the return of XREAD.");
$session->execute("SELECT open_wallets('timed-', 10)");
for my $i (1 .. $samples) {
    my $done = $session->transaction('COMMIT', plus('timed-' . (1 + $i % 10), 1)->[1]);
    $done->{began} = @commits;
    keep_account($done);
    watch_silently(0.003);
    progress("$i of $samples") if $i % 20 == 0;
}
watch_silently(0.2);
my @latencies = map { $arrived_at{$_} - $committed_at{$_} } grep { $arrived_at{$_} && $committed_at{$_} } keys %committed_at;
note(sprintf 'p50 %.1f ms, p99 %.1f ms, all %d of them: the COMMITs themselves took %.1f ms (p50).',
    1000 * Demo::Verdict::percentile(0.5, @latencies), 1000 * Demo::Verdict::percentile(0.99, @latencies),
    scalar @latencies, 1000 * Demo::Verdict::percentile(0.5, @took));
$quiet = 0;

chapter('The worker dies');
paragraph(<<'TEXT');
From here on three sessions more work in the background, as fast as they can; their entries are counted and not shown. One
transaction is prepared and left so. Then one opens 20,000 wallets, and as soon as their entries begin to arrive the worker is
killed.
TEXT
$load = Demo::Load->new($dir, $session, 3);
columns('transaction', 'entry');
scenes(6);
my $orphan = run('PREPARE', plus('lea', 35));
@held = ('lea');
my $worker = stat_sink()->{pid};
my $before = redis()->xlen($streams[0]);
open_many();
my $redis = redis();
my $arrived = 0;
my $deadline = now() + 5;
$arrived = $redis->xlen($streams[0]) - $before while $arrived < $bulk / 10 && now() < $deadline;
kill_9($worker, qr/postgres/);
$arrived = $redis->xlen($streams[0]) - $before;
alarm(sprintf 'worker %d killed with -9 when %s of these entries were there', $worker, thousands($arrived));
scenes(2);
if ($orphan->{end} eq 'PREPARED') {
    @held = ();
    note("#$orphan->{number} was prepared before the crash and is committed after it:");
    second_phase($orphan, 'COMMIT PREPARED');
}
scenes(8);
catch_up();
my $stat = stat_sink();
note(sprintf 'There are %s entries now. The new worker (%d) sent %s again, which Redis refused: they were there already.',
    thousands(entries_in_redis()), $stat->{pid}, thousands($stat->{duplicates_rejected}));

chapter('Redis dies');
paragraph('Nobody waits for Redis: transactions go on as before, and their events stay in the database until it is back.');
columns('transaction', 'entry');
scenes(3);
my $usual = Demo::Verdict::percentile(0.5, splice @took);
my $pid = kill_redis();
alarm("Redis ($pid) killed with -9");
scenes(10);
$stat = stat_sink();
note(sprintf 'COMMIT took %.1f ms meanwhile, %.1f ms before (p50). outbox.stat_sink says: %s; %s events behind, the oldest of '
    . 'them %.1f s old. "%s"', 1000 * Demo::Verdict::percentile(0.5, @took), 1000 * $usual, $stat->{state},
    thousands($stat->{lag_events}), $stat->{lag_seconds}, $stat->{last_error} // '');
start_redis();
alarm('Redis started again, with its data (appendfsync always)');
scenes(3);
catch_up();
note(sprintf 'All caught up: %s entries.', thousands(entries_in_redis()));

chapter('Redis forgets everything');
paragraph(<<'TEXT');
Killed again, and this time its files are removed. The worker notices before it appends anything new, and fills the streams
again from the events that the database keeps, each at the ID that it had.
TEXT
columns('transaction', 'entry');
scenes(3);
my %before = map { $_->{event_id} => $_->{id} } @{ $readers->{entries} };
$pid = kill_redis();
system('rm', '-rf', "$dir/appendonlydir");
alarm(sprintf 'Redis (%d) killed with -9, its data removed: %s entries are lost', $pid, thousands(scalar keys %before));
scenes(4);
start_redis();
alarm('Redis started again, empty');
scenes(4);
catch_up();
my %after = map { $_->{event_id} => $_->{id} } Demo::Verdict::entries(redis(), @streams);
my $same = grep { ($after{$_} // '') eq $before{$_} } keys %before;
note(sprintf '%s of the %s lost entries are back at the ID that they had (outbox.stat_sink: %s healed), and %s new ones follow.',
    thousands($same), thousands(scalar keys %before), thousands(stat_sink()->{healed}), thousands(keys(%after) - keys %before));

$load->stop;
catch_up();
push @rolled_back, @{ $load->{rolled_back} };
my $count = Demo::Verdict::compare(
    ledger => $session->rows('SELECT event_id, wallet, n FROM ledger'),
    entries => [ Demo::Verdict::entries(redis(), @streams) ],
    seen => $readers->{entries},
    commits => [ \@commits, @{ $load->{commits} } ],
    rolled_back => \@rolled_back,
);

chapter('The books');
my $all = sub { my ($name, $value, $remark) = @_; table_row($name, thousands($count->{$value}), $remark) };
my $none = sub { my ($name, $value, $remark) = @_; table_row($name, thousands($count->{$value}), $remark, !$count->{$value}) };
$all->('committed', 'committed', sprintf 'events of %s transactions', thousands($number + $samples + $load->{transactions} + 2));
$all->('published', 'published', 'entries in ' . join ' and ', @streams);
$none->('lost', 'lost', 'committed and not in a stream, or never read');
$none->('duplicated', 'duplicated', 'twice in a stream, or read twice');
$none->('out of order, per wallet', 'wallet_order', 'by the number that was counted under the row lock');
$none->('out of order, by entry ID', 'id_order', 'against the order of the COMMITs of each session');
$all->('rolled back', 'rolled_back', 'events of transactions and savepoints that were undone');
$none->('rolled back but published', 'ghosts', 'entries that no committed transaction emitted');
my $time = sub { return sprintf '%.1f ms', 1000 * Demo::Verdict::percentile($_[0], @latencies) };
table_row('COMMIT to XREAD, p50', $time->(0.5), sprintf '%s samples, while nothing was killed', thousands(scalar @latencies));
table_row('COMMIT to XREAD, p99', $time->(0.99));
note($_) for @{ $count->{details} };
exit($count->{bad} || !$count->{published} ? 1 : 0);
