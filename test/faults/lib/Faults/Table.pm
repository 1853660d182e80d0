# The faults, each with its row of the matrix in doc/hazards.md: how it is done, and what of the checks it changes.
#
#   name, row, group    group "headline": those that are tried by the hundred; "points": the named crash points
#   inject              sub ($round): does it, saying when it began and ended, and whether it hit anything
#   needs_flight, crash, allowed      see Faults::Checker
#   aof, postgres_conf, proxy, replica, shim, rate, workload, load    what the round is set up with; shim: what it is preloaded
#                       into, see shim.cpp
#   claim_idle          ms; where nobody may do anything again, or nobody but Redis is away, it is so long that none is taken for dead
package Faults::Table;

use strict;
use warnings;
use Time::HiRes qw(sleep);

use Faults::Allowed qw(%at_least_once %lease_lost %other_writer);
use Faults::Points;
use Faults::Wait qw(now_ns);

my @faults = (
    {
        name => 'none',
        row => 'A7',
        inject => sub { my ($round) = @_; $round->begin('none'); $round->hit(1); return },
    },

    # PostgreSQL
    {
        name => 'worker-kill',
        row => 'A1',
        group => 'headline',
        needs_flight => 1,
        crash => 1,
        inject => sub {
            my ($round) = @_;
            my $worker = $round->{postgres}->worker;
            $round->flow(1000);
            $round->begin("worker $worker is killed");
            $round->hit($round->{postgres}->kill_child('KILL', $worker));
            return;
        },
    },
    {
        name => 'postmaster-kill',
        row => 'A5',
        group => 'headline',
        needs_flight => 1,
        crash => 1,
        inject => sub { power_cut($_[0], sub { $_[0]{postgres}->crash }) },
    },
    {
        # What was acknowledged before it was durable is gone, if nobody has written the log meanwhile: not the WAL writer, which
        # takes full pages whatever its delay is, and not consumers, which wait for their commits.
        name => 'postmaster-kill-async',
        row => 'A6',
        needs_flight => 1,
        crash => 1,
        allowed => {%lease_lost},
        workload => [ '--async', 100 ],
        postgres_conf => "wal_writer_delay = '10s'\n",
        inject => sub {
            my ($round) = @_;
            my @inbox = map { $_->{pid} } $round->services('inbox');
            my $writer = $round->{postgres}->value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'");
            $round->{postgres}->kill_child('STOP', $writer);
            kill 'STOP', @inbox;
            $round->pass(0.1 + rand 0.2);
            power_cut($round, sub { $_[0]{postgres}->crash }, async => 1);
            kill 'CONT', @inbox;
            return;
        },
    },
    {
        name => 'immediate-shutdown',
        row => 'A5',
        needs_flight => 1,
        crash => 1,
        inject => sub { power_cut($_[0], sub { $_[0]{postgres}->stop_immediately }) },
    },
    {
        name => 'prepared-crash',
        row => 'A8',
        crash => 1,
        inject => sub {
            my ($round) = @_;
            my $finish = $round->prepare(100);
            power_cut($round, sub { $_[0]{postgres}->crash });
            sleep rand 0.2;
            $finish->();
            return;
        },
    },
    {
        name => 'worker-term',
        row => 'A2',
        needs_flight => 1,
        inject => sub {
            my ($round) = @_;
            my $worker = $round->{postgres}->worker;
            $round->flow(1000);
            $round->begin("worker $worker is terminated");
            $round->hit($round->{postgres}->kill_child('TERM', $worker));
            return;
        },
    },
    {
        # one of those that emit
        name => 'backend-kill',
        row => 'A4',
        needs_flight => 1,
        crash => 1,
        inject => sub {
            my ($round) = @_;
            my $backends = $round->{postgres}->rows(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
                . "AND query NOT LIKE '%effect%' ORDER BY state = 'active' DESC, random()");
            $round->burst(100);
            $round->begin("backend $backends->[0][0] is killed");
            $round->hit($round->{postgres}->kill_child('KILL', $backends->[0][0]));
            return;
        },
    },

    {
        name => 'disk-full',
        row => 'A11',
        crash => 1,
        shim => 'postgres',
        inject => sub {
            my ($round) = @_;
            $round->burst(100);
            $round->begin('no file grows');
            $round->set_shim(full => 1);
            $round->pass(0.3 + rand 0.7);
            $round->set_shim(full => 0);
            $round->hit($round->shim_met);
            # a server that cannot write what it must to recover gives up
            $round->pass(0.3);
            $round->await(sub {
                if ($round->{postgres}->has_ended) { $round->{postgres}->start; return 1 }
                return $round->{postgres}->connection;
            }, 60);
            return;
        },
    },
    {
        name => 'fsync-error',
        row => 'A12',
        crash => 1,
        shim => 'postgres',
        inject => sub {
            my ($round) = @_;
            $round->burst(100);
            $round->begin('a file cannot be synchronized');
            $round->set_shim(sync_errors => 1);
            $round->hit($round->await(sub { $round->shim_met }, 15));
            $round->set_shim(sync_errors => 0);
            return;
        },
    },
    {
        name => 'slow-disk',
        row => 'D2',
        load => 3,
        shim => 'postgres',
        inject => sub {
            my ($round) = @_;
            $round->begin('the disk is slow');
            $round->set_shim(sync_delay => 20_000 + int rand 80_000);
            $round->pass(1);
            $round->burst(100);
            $round->pass(0.5);
            $round->set_shim(sync_delay => 0);
            $round->hit($round->shim_met);
            return;
        },
    },
    clock_jump('postgres'),

    # Redis
    {
        name => 'redis-kill',
        row => 'B1',
        group => 'headline',
        needs_flight => 1,
        claim_idle => 15_000,
        aof => 'always',
        allowed => {%at_least_once},
        inject => \&kill_redis,
    },
    {
        name => 'redis-kill-everysec',
        row => 'B1',
        needs_flight => 1,
        claim_idle => 15_000,
        aof => 'everysec',
        allowed => {%at_least_once},
        inject => \&kill_redis,
    },
    {
        name => 'redis-flush',
        row => 'B2',
        allowed => {%lease_lost},
        inject => sub {
            my ($round) = @_;
            $round->burst(100);
            $round->begin('FLUSHALL');
            $round->redis_cmd('FLUSHALL');
            $round->{tap}->again;
            $round->hit(1);
            return;
        },
    },
    {
        name => 'redis-empty',
        row => 'B2',
        allowed => {%lease_lost},
        inject => sub {
            my ($round) = @_;
            $round->burst(100);
            $round->begin('Redis is killed, and its data removed');
            $round->{redis}->kill9;
            $round->pass(rand 0.2);
            $round->{redis}->wipe->start;
            $round->hit(1);
            return;
        },
    },
    {
        # what the kernel had not yet been made to write is gone: the end of the file
        name => 'redis-power-loss',
        row => 'B3',
        aof => 'everysec',
        allowed => {%lease_lost},
        inject => sub {
            my ($round) = @_;
            $round->burst(100);
            $round->begin('Redis is killed, and the end of its file lost');
            $round->{redis}->kill9;
            my ($file) = glob "$round->{dir}/appendonlydir/*.incr.aof";
            my $lost = int((-s $file) * rand 0.5);
            truncate $file, (-s $file) - $lost or die "$file: $!\n";
            $round->note("$lost bytes are gone");
            $round->{redis}->start;
            $round->hit($lost > 0);
            return;
        },
    },
    {
        # the replica is promoted while the other one still confirms
        name => 'redis-failover',
        row => 'B4',
        replica => 1,
        allowed => {%lease_lost},
        inject => sub {
            my ($round) = @_;
            $round->burst(100);
            $round->begin('the replica is promoted');
            $round->{replica}->cmd('REPLICAOF', 'NO', 'ONE');
            my $before = $round->entries;
            $round->burst(100);
            $round->pass(rand 0.3);
            my $lost = $round->entries - $before;
            $round->note("$lost entries are lost");
            $round->fail_over;
            $round->{tap}->again;
            $round->hit($lost > 0);
            return;
        },
    },
    clock_jump('redis'),
    {
        name => 'redis-stop',
        row => 'B5',
        needs_flight => 1,
        allowed => {%lease_lost},
        inject => sub {
            my ($round) = @_;
            $round->flow(1000);
            $round->begin('Redis stands still');
            $round->{redis}->sigstop;
            $round->emits_meanwhile(0.2 + rand 2.6);
            $round->{redis}->sigcont;
            $round->hit(1);
            return;
        },
    },
    {
        name => 'redis-slow-command',
        row => 'B5',
        needs_flight => 1,
        allowed => {%lease_lost},
        inject => sub {
            my ($round) = @_;
            $round->flow(1000);
            my $seconds = sprintf '%.1f', 0.2 + rand 1.3;
            $round->begin("Redis sleeps for $seconds s");
            my $asleep = now_ns();
            $round->redis_cmd('DEBUG', 'SLEEP', $seconds);
            $round->hit(now_ns() - $asleep > 1e8);
            return;
        },
    },

    # the connection between the worker and Redis
    {
        name => 'replies-swallowed',
        row => 'B6',
        group => 'headline',
        proxy => 1,
        inject => sub {
            my ($round) = @_;
            cuts($round, 1 + int rand 3, sub { $round->{proxy}->swallow(int rand 8000) });
            return;
        },
    },
    {
        name => 'requests-cut',
        row => 'B6',
        proxy => 1,
        inject => sub {
            my ($round) = @_;
            cuts($round, 1 + int rand 3, sub { $round->{proxy}->cut_request(int rand 50000) });
            return;
        },
    },
    {
        name => 'connection-cut',
        row => 'B6',
        proxy => 1,
        inject => sub {
            my ($round) = @_;
            my $cuts = $round->{proxy}->stats->{cuts};
            for (1 .. 1 + int rand 5) {
                $round->burst(100);
                sleep rand 0.01;
                $round->begin('connections are cut');
                $round->{proxy}->cut;
                $round->pass(rand 0.15);
            }
            $round->hit($round->{proxy}->stats->{cuts} > $cuts);
            return;
        },
    },
    {
        name => 'connection-refused',
        row => 'B6',
        proxy => 1,
        needs_flight => 1,
        inject => sub { proxied_for_a_while($_[0], 'connections are refused', 0.2 + rand 1.5, 'refuse') },
    },
    {
        # no byte either way, and nobody says so
        name => 'black-hole',
        row => 'B6',
        proxy => 1,
        needs_flight => 1,
        inject => sub { proxied_for_a_while($_[0], 'nothing passes', 0.2 + rand 2.8, 'blackhole') },
    },
    {
        name => 'replies-dribble',
        row => 'B6',
        proxy => 1,
        inject => sub {
            my ($bytes, $round) = (1 + int rand 8, @_);
            proxied_for_a_while($round, "replies come in pieces of $bytes", 1, 'dribble', $bytes);
        },
    },

    # what Redis may answer
    refusal('out-of-memory', [ 'CONFIG', 'SET', 'maxmemory', 1 ], [ 'CONFIG', 'SET', 'maxmemory', 0 ]),
    refusal('read-only', [ 'REPLICAOF', '127.0.0.1', 1 ], [ 'REPLICAOF', 'NO', 'ONE' ]),
    refusal('too-few-replicas', [ 'CONFIG', 'SET', 'min-replicas-to-write', 1 ], [ 'CONFIG', 'SET', 'min-replicas-to-write', 0 ]),
    refusal('writes-paused', [ 'CLIENT', 'PAUSE', 60000, 'WRITE' ], [ 'CLIENT', 'UNPAUSE' ]),
    refusal('command-forbidden', [ 'ACL', 'SETUSER', 'default', '-xadd' ], [ 'ACL', 'SETUSER', 'default', '+xadd' ]),

    # consumers
    clock_jump('consumers'),
    {
        name => 'consumer-kill',
        row => 'C1',
        group => 'headline',
        allowed => {%at_least_once},
        inject => sub {
            my ($round) = @_;
            my @services = $round->services;
            push @services, splice @services, 0, rand @services;
            my $caught = $round->catch_one(300, @services);
            my $service = $caught // $services[0];
            $round->begin("a consumer of group $service->{group} ($service->{pid}) is killed");
            kill 'KILL', $service->{pid};
            $round->hit($caught);
            return;
        },
    },
    {
        name => 'consumers-kill',
        row => 'C1',
        allowed => {%at_least_once},
        inject => sub {
            my ($round) = @_;
            my @services = $round->services;
            $round->burst(150);
            sleep rand 0.06;
            $round->begin('all consumers are killed');
            kill 'KILL', map { $_->{pid} } @services;
            $round->hit($round->pending_of(@$_{qw(pid group)})) for @services;
            return;
        },
    },
    {
        name => 'consumer-term',
        row => 'C1',
        inject => sub {
            my ($round) = @_;
            my @services = $round->services;
            my $service = $services[ rand @services ];
            $round->burst(150);
            sleep rand 0.06;
            $round->begin("a consumer of group $service->{group} ($service->{pid}) is told to end");
            $round->hit($round->pending_of($service->{pid}, $service->{group}));
            $service->{told} = 1;
            kill 'TERM', $service->{pid};
            return;
        },
    },
    {
        # goes on with what others have taken over
        name => 'consumer-stop',
        row => 'C2',
        allowed => {%lease_lost},
        inject => sub {
            my ($round) = @_;
            my @services = $round->services;
            push @services, splice @services, 0, rand @services;
            # with something in hand, or there is nothing to go on with
            my $caught = $round->catch_one(150, @services);
            my $service = $caught // $services[0];
            $round->begin("a consumer of group $service->{group} ($service->{pid}) is stopped");
            kill 'STOP', $service->{pid};
            $round->hit($caught);
            $round->pass(1.2 + rand 1);
            kill 'CONT', $service->{pid};
            return;
        },
    },
    {
        name => 'duplicate-delivery',
        row => 'C3',
        allowed => {%other_writer},
        inject => sub {
            my ($round) = @_;
            $round->burst(100);
            $round->begin('entries are there again');
            my $copies = 0;
            for (1 .. 3) { $copies += $round->copy_entries(1 + int rand 20, '*'); $round->pass(0.1) }
            $round->hit($copies);
            return;
        },
    },
    {
        name => 'malformed-entry',
        row => 'C4',
        allowed => {%other_writer},
        inject => sub {
            my ($round) = @_;
            $round->burst(100);
            $round->begin('entries that are no events');
            $round->add_malformed for 1 .. 1 + int rand 5;
            $round->hit(1);
            return;
        },
    },
    {
        name => 'group-destroyed',
        row => 'C6',
        allowed => {%lease_lost},
        inject => sub {
            my ($round) = @_;
            $round->burst(100);
            sleep rand 0.06;
            $round->begin('groups are destroyed');
            for my $key (@{ $round->{keys} }) {
                for my $group ($round->groups) {
                    $round->hit(eval { $round->redis_cmd('XGROUP', 'DESTROY', $key, $group) } // 0) if rand() < 0.5;
                }
            }
            return;
        },
    },
    {
        name => 'consumers-replaced',
        row => 'C7',
        load => 3,
        allowed => {%at_least_once},
        inject => sub {
            my ($round) = @_;
            $round->begin('consumers come and go');
            for (1 .. 4) {
                $round->burst(50);
                for my $service ($round->services) { kill 'KILL', $service->{pid} if rand() < 0.4 }
                $round->pass(0.15 + rand 0.1);
            }
            $round->hit(keys %{ $round->{deaths} });
            return;
        },
    },
);

# PostgreSQL ends without a word, and comes back
sub power_cut {
    my ($round, $cut, %burst) = @_;
    $round->flow(1000, %burst);
    $round->begin('PostgreSQL ends');
    $cut->($round);
    $round->hit(1);
    $round->pass(rand 0.1);
    $round->{postgres}->start;
    $round->end;
    return;
}

sub kill_redis {
    my ($round) = @_;
    my $held = rand() < 0.5;
    $round->flow(1000);
    $round->begin('Redis is killed');
    # what is written to it until then it never reads
    $round->{redis}->sigstop if $held;
    sleep rand 0.1 if $held;
    $round->{redis}->kill9;
    $round->hit(1);
    $round->emits_meanwhile(rand 0.4);
    $round->{redis}->start;
    return;
}

sub cuts {
    my ($round, $times, $arm) = @_;
    my $cuts = $round->{proxy}->stats->{cuts};
    $round->begin('a connection is cut at a byte');
    for my $n (1 .. $times) {
        $arm->();
        $round->burst(200);
        $round->hit($round->{proxy}->wait_for_cut($cuts + $n, 2));
    }
    return;
}

sub for_a_while {
    my ($round, $what, $seconds, $from, $to) = @_;
    $round->burst(200);
    $round->begin($what);
    $from->($round);
    $round->emits_meanwhile($seconds);
    $to->($round);
    $round->hit(1);
    return;
}

# The clock on the wall of one of them goes elsewhere, and comes back.
sub clock_jump {
    my ($whose) = @_;
    return {
        name => "clock-of-$whose",
        row => 'D1',
        shim => $whose,
        allowed => {%lease_lost},
        # what is due in half a second by a clock that is two hours ahead is due in two hours
        workload => [ $whose eq 'postgres' ? ('--delayed', 0) : () ],
        inject => sub {
            my ($round) = @_;
            my @jumps = (-86400, -7200, -1, 1, 7200);
            my $jump = $jumps[ rand @jumps ];
            $round->burst(150);
            $round->begin("a clock jumps by $jump s");
            $round->set_shim(clock => $jump);
            $round->pass(0.2 + rand 0.8);
            $round->burst(100);
            $round->set_shim(clock => 0);
            $round->hit(1);
            return;
        },
    };
}

sub proxied_for_a_while {
    my ($round, $what, $seconds, $how, @how) = @_;
    return for_a_while($round, $what, $seconds, sub { $round->{proxy}->$how(@how) }, sub { $round->{proxy}->pass });
}

# Redis as a whole refuses, from one command to the next
sub refusal {
    my ($name, $from, $to) = @_;
    return {
        name => $name,
        row => 'B7',
        needs_flight => 1,
        allowed => {%lease_lost},
        inject => sub {
            my ($round) = @_;
            for_a_while($round, "@$from", 0.2 + rand 1, sub { $round->redis_cmd(@$from) }, sub { $round->redis_cmd(@$to) });
        },
    };
}

sub all { my ($points) = @_; return (@faults, Faults::Points::points($points)) }

# By name, a pattern of names, a row of the matrix or a group; "=7" behind it says how many rounds of them.
sub choose {
    my ($all, $rounds, @words) = @_;
    my (@chosen, %chosen);
    for my $said (@words) {
        my ($word, $own) = $said =~ /^(.*?)(?:=(\d+))?$/;
        my $pattern = join '.*', map { quotemeta } split /\*/, $word, -1;
        my @found = grep {
            $word eq 'all' || $_->{name} =~ /^$pattern$/ || lc $_->{row} eq lc $word || ($_->{group} // '') eq $word
        } @$all;
        die "there is no fault \"$word\"; there are:\n" . join('', map { "  $_->{row}  $_->{name}\n" } @$all) unless @found;
        push @chosen, map { { %$_, rounds => $own // $rounds } } grep { !$chosen{ $_->{name} }++ } @found;
    }
    return @chosen;
}

1;
