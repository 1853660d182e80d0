# Does outbox.event say the truth? Its rows and the entries in Redis are compared one by one.
#
#   ok_positions($node, $redis, $name, db => 'postgres', ignore => sub { my ($key, $id, $fields) })
#       one assertion: each published event of outbox.event is in the stream and at the position that it names, every
#       entry has a row, and no event of another status has an entry
#   event_ids($redis)          { event_id => how often it is in the streams }
package OutboxTest::Positions;

use strict;
use warnings;
use Exporter qw(import);
use Test::More;

our @EXPORT = qw(ok_positions event_ids);

sub ok_positions {
    my ($node, $redis, $name, %options) = @_;
    my %at;
    for my $key ($redis->streams) {
        for my $entry ($redis->entries($key)) {
            my ($id, $fields) = @$entry;
            next if $options{ignore} && $options{ignore}->($key, $id, $fields);
            $at{ $fields->{event_id} } = "$key $id";
        }
    }
    my ($rows, @wrong) = (0);
    for my $row (split /\n/, $node->safe_psql($options{db} // 'postgres',
        'SELECT event_id, status, stream, position FROM outbox.event')) {
        my ($event_id, $status, $stream, $position) = split /\|/, $row;
        my $found = delete $at{$event_id} // 'nowhere';
        my $said = $status eq 'published' ? "$stream $position" : 'nowhere';
        push @wrong, "$event_id is $found, outbox.event says $status, $stream $position" if $found ne $said;
        $rows++;
    }
    push @wrong, map { "$_ is $at{$_}, outbox.event does not have it" } sort keys %at;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $good = ok($rows > 0 && !@wrong, $name);
    if (!$good) {
        diag("$rows rows, " . @wrong . ' wrong');
        diag($_) for splice @wrong, 0, 5;
    }
    return $good;
}

sub event_ids {
    my ($redis) = @_;
    my %count;
    for my $key ($redis->streams) {
        $count{ $_->[1]{event_id} // '' }++ for $redis->entries($key);
    }
    return \%count;
}

1;
