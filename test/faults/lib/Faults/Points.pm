# A fault for each named crash point of the list in test/faults/crash_points.
package Faults::Points;

use strict;
use warnings;

use Faults::Allowed qw(%at_least_once %lease_lost %other_writer);

# The named crash points: where a process comes by that seldom, it is made to.
my %provoke = (
    reconnect => sub { my ($round) = @_; $round->disconnect_worker },
    loss => sub { my ($round) = @_; $round->redis_cmd('FLUSHALL'); $round->{tap}->again },
    foreign => sub { my ($round) = @_; $round->copy_entries(1, 'ahead') },
    hold => sub { my ($round, $file) = @_; $round->spoil_stream(sub { !-e $file }) },
    retention => sub { },
    backlog => sub { my ($round) = @_; $round->burst(700) },
    takeover => sub {
        my ($round) = @_;
        my $service = $round->catch_one(150, $round->services);
        kill 'KILL', $service->{pid} if $service;
    },
    quiet => sub { my ($round, $file) = @_; $round->quiet(sub { !-e $file }, 15) },
    malformed => sub { my ($round) = @_; $round->add_malformed },
    replay => sub { my ($round) = @_; $round->replay },
);
my %allows = (loss => {%lease_lost}, foreign => {%other_writer}, malformed => {%other_writer}, hold => { unordered => 1 });

sub points {
    my ($file) = @_;
    open my $list, '<', $file or return;
    my @points;
    while (my $line = readline $list) {
        chomp $line;
        my ($side, $name, $needs) = split ' ', $line;
        next unless defined $name && $line !~ /^#/;
        die "crash point $name needs \"$needs\", and nobody knows how\n" if defined $needs && !$provoke{$needs};
        push @points, {
            name => "point:$name",
            row => $side eq 'server' ? 'A3' : $side eq 'emit' ? 'A4' : $name =~ /dead_letter/ ? 'C5' : 'C1',
            group => 'points',
            crash => $side ne 'client',
            allowed => { $side eq 'client' ? %at_least_once : (), %{ $allows{ $needs // '' } // {} } },
            postgres_conf => ($needs // '') eq 'retention' ? "outbox.retention = '1s'\n" : '',
            inject => sub {
                my ($round) = @_;
                my $file = $side eq 'client' ? $round->client_point_file : $round->server_point_file;
                $round->burst(50);
                $round->begin("crash point $name");
                $round->arm($file, $name, defined $needs ? 1 : 1 + int rand 10);
                $provoke{$needs}->($round, $file) if $needs;
                for (1 .. 10) {
                    last unless -e $file;
                    $round->burst(100);
                    $round->await(sub { !-e $file }, 1);
                }
                # who takes the file away tells, as it may be taken in this very moment
                my $hit = !unlink $file;
                $round->hit($hit);
                $round->note($hit ? 'the crash has come' : 'nobody came by');
                return;
            },
        };
    }
    return @points;
}

1;
