# The primary dies in the middle of its work and a standby is promoted. Whatever the standby has committed is in the streams
# once: also what the primary had published, and what it had published and the standby knows no tick of. What the standby
# never received stays in the streams, and new events come behind it.
use strict;
use warnings;
use Test::More;

use OutboxTest;
use OutboxTest::Positions;

sub truth_ids {
    my ($of) = @_;
    return { map { $_ => 1 } split /\n/, $of->safe_psql('postgres', 'SELECT event_id FROM truth') };
}

sub workers { return $_[0]->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'outbox%'") }

sub above {
    my ($x, $y) = map { [ split /-/ ] } @_;
    return $x->[0] <=> $y->[0] || $x->[1] <=> $y->[1];
}

sub highest {
    my ($redis) = @_;
    my ($id) = sort { above($b, $a) } map { $redis->cmd('XREVRANGE', $_, '+', '-', 'COUNT', 1)->[0][0] } $redis->streams;
    return $id;
}

my $redis = OutboxTest::Redis->new;
# the worker of the promoted server keeps its lease also when it stands still for a while, with the machine
my $primary = new_node(name => 'a', redis => $redis, streaming => 1, conf => "outbox.lease_timeout = '6s'\n");
my $round = 0;

# One failover; returns the promoted server. `cut` is called under load, a while before the primary is stopped.
sub fail_over {
    my (%options) = @_;
    my $what = $options{what};
    $round++;
    $primary->backup("b$round");
    my $standby = PostgreSQL::Test::Cluster->new("standby$round");
    $standby->init_from_backup($primary, "b$round", has_streaming => 1);
    $standby->append_conf('postgresql.conf', "max_standby_streaming_delay = -1\nwal_receiver_status_interval = 1\n");
    $standby->start;

    my $load = start_load($primary, clients => 4, rate => 500, restart => 0);
    my $published = $redis->published;
    poll_until(sub { $redis->published > $published + 200 && committed($standby) > 100 }, "$what: the primary is at work");
    is(workers($standby), 0, "$what: a standby has no worker");
    my ($status, undef, $err) = $standby->psql('postgres', "SELECT outbox.emit('a.b.c', '{}')");
    like($err, qr/read-only/, "$what: nor does it emit") or diag $err;
    $options{cut}->($standby) if $options{cut};
    $primary->stop('immediate');
    $load->stop;
    my $highest = highest($redis);
    my %there = %{ event_ids($redis) };

    my $from = -s $standby->logfile;
    $standby->promote;
    poll_until(sub { workers($standby) > 0 }, "$what: the promoted server has a launcher");
    end_prepared($standby, 'postgres', 'load-');
    run_load($standby, clients => 2, transactions => 50);
    wait_settled($standby);

    # what was lost with the primary is known by asking it, where it can do no harm
    $primary->append_conf('postgresql.conf', "outbox.enabled = off\nsynchronous_standby_names = ''\n");
    $primary->start;
    my $of_primary = truth_ids($primary);
    my $of_standby = truth_ids($standby);
    my $lost = sub { my $id = $_[2]{event_id}; $of_primary->{$id} && !$of_standby->{$id} };
    ok_streams($standby, $redis, "$what: everything on the promoted server is there once and in order",
        ignore => sub { $options{ignore} && $options{ignore}->(@_) || $lost->(@_) });
    my $ids = event_ids($redis);
    is((grep { $_ > 1 } values %$ids), 0, "$what: no event is there twice");
    is((grep { !$ids->{$_} } keys %there), 0, "$what: nothing has gone from the streams");
    my @lost = grep { $of_primary->{$_} && !$of_standby->{$_} } keys %there;
    if ($options{lags}) {
        cmp_ok(scalar @lost, '>', 50, "$what: a tail was lost");
    }
    ok_positions($standby, $redis, "$what: outbox.event says where everything is",
        ignore => sub { !$of_standby->{ $_[2]{event_id} } });
    my $below = 0;
    for my $key ($redis->streams) {
        $below += grep { !$there{ $_->[1]{event_id} } && above($_->[0], $highest) <= 0 } $redis->entries($key);
    }
    is($below, 0, "$what: what is new is above all that was there");

    # the old one comes back and is not let in
    $primary->append_conf('postgresql.conf', "outbox.enabled = on\n");
    $primary->reload;
    poll_until(sub { stat_sink($primary)->{state} eq 'fenced' }, "$what: the old primary is fenced");
    my $before = $redis->published;
    end_prepared($primary, 'postgres', 'load-');
    emit_some($primary, 20);
    is(flush($primary, 'postgres', '1 s'), '', "$what: what is emitted on the old primary waits");
    is($redis->published, $before, "$what: and is not sent");
    $primary->stop('immediate');
    return ($standby, $lost);
}

my ($next, $lost) = fail_over(what => 'up to date');
$primary = $next;
my @ignored = ($lost);
my $ignored = sub { for my $ignore (@ignored) { return 1 if $ignore->(@_) } return 0 };

($next, $lost) = fail_over(
    what => 'lagging',
    lags => 1,
    ignore => $ignored,
    cut => sub {
        my ($standby) = @_;
        $standby->append_conf('postgresql.conf', "primary_conninfo = ''\n");
        $standby->reload;
        poll_until(sub { $standby->safe_psql('postgres', 'SELECT count(*) FROM pg_stat_wal_receiver') == 0 },
            'nothing is received any more');
        my $published = $redis->published;
        poll_until(sub { $redis->published > $published + 300 }, 'the primary publishes more');
    });

done_testing();
