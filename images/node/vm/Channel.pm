# SPDX-License-Identifier: Apache-2.0
# What `call` and `agent` say to each other: frames of a type (one letter), a length and so many bytes, one connection
# for each command. In Perl because every Debian has it, and because the tools that forward a connection to a command
# lose its exit status, and mix its standard error with its output.
#
#   call to agent   R  run: count of variables, variables and arguments, separated by NUL
#                   I  standard input; empty at its end. The next comes only after an A
#   agent to call   A  the input was taken
#                   O  standard output
#                   E  standard error
#                   X  ended, with this wait status
#
# Whoever sees the connection end early gives up: `agent` ends the command.
package Channel;

use strict;
use warnings;
use Socket qw(:DEFAULT IPPROTO_TCP TCP_NODELAY);

# Where `agent` listens: at the machine's end of the link to its outer node (vm/machine, vm/boot).
our $ADDRESS = pack_sockaddr_in(7000, inet_aton('192.0.2.2'));
our $CHUNK   = 65536;

# Frames are small and awaited.
sub prepare {
    my ($socket) = @_;
    setsockopt($socket, IPPROTO_TCP, TCP_NODELAY, 1) or die "TCP_NODELAY: $!\n";
}

# All of it, or false.
sub put {
    my ($handle, $bytes) = @_;
    while (length $bytes) {
        my $n = syswrite($handle, $bytes);
        next if !defined $n && $!{EINTR};
        return 0 unless $n;
        substr($bytes, 0, $n, '');
    }
    return 1;
}

sub send_frame {
    my ($socket, $type, $bytes) = @_;
    return put($socket, pack('a1 N', $type, length $bytes) . $bytes);
}

# The next frame's type and bytes; nothing at the end of the connection.
sub receive_frame {
    my ($socket) = @_;
    my ($type, $length) = unpack('a1 N', exactly($socket, 5) // return);
    return ($type, exactly($socket, $length) // return);
}

sub exactly {
    my ($handle, $length) = @_;
    my $bytes = '';
    while (length $bytes < $length) {
        my $n = sysread($handle, $bytes, $length - length $bytes, length $bytes);
        next if !defined $n && $!{EINTR};
        return unless $n;
    }
    return $bytes;
}

# The set of file numbers that select() wants.
sub set_of {
    my $set = '';
    vec($set, fileno $_, 1) = 1 for @_;
    return $set;
}

1;
