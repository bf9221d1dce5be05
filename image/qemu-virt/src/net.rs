//! The network: asks the gateway for its address, and has it answer echo requests.

use alloc::vec::Vec;

use virtio_drivers::device::net::VirtIONet;
use virtio_drivers::transport::pci::PciTransport;

use crate::cpu;
use crate::virtio::{DomainHal, Translated};

/// The number of virtio device that the network is.
pub const NET: usize = 1;
const QUEUE: usize = 16;
const BUFFER: usize = 2048;
/// The driver of the virtio network device.
pub type Net = VirtIONet<DomainHal<NET>, Translated<PciTransport>, QUEUE>;

// QEMU's user network, as it is unless told otherwise.
const HERE: [u8; 4] = [10, 0, 2, 15];
const GATEWAY: [u8; 4] = [10, 0, 2, 2];

const PATIENCE_NS: u64 = 10_000_000_000;
const ECHO_BYTES: usize = 1024;

/// Opens the network device.
pub fn open(transport: PciTransport) -> Net {
    Net::new(Translated(transport), BUFFER).expect("a virtio network device")
}

/// Sends `count` echo requests to the gateway, one after the other, and checks each answer.
pub fn echo(net: &mut Net, count: u16) {
    let here = net.mac_address();
    let request = arp(here);
    let gateway: [u8; 6] = exchange(net, &request, |packet| {
        // An ARP reply of the gateway.
        (packet.get(12..14)? == [8, 6] && packet.get(20..22)? == [0, 2] && packet.get(28..32)? == GATEWAY)
            .then(|| packet[22..28].try_into().expect("six bytes"))
    });
    for sequence in 0..count {
        let payload: Vec<u8> =
            (0..ECHO_BYTES).map(|index| (index as u8).wrapping_mul(7).wrapping_add(sequence as u8)).collect();
        let request = ping(here, gateway, sequence, &payload);
        exchange(net, &request, |packet| {
            // An echo reply from the gateway, with this number.
            let reply = packet.get(12..14)? == [8, 0] && packet.get(26..30)? == GATEWAY && packet.get(34)? == &0;
            (reply && packet.get(40..42)? == sequence.to_be_bytes()).then(|| {
                assert!(packet.get(42..42 + ECHO_BYTES) == Some(&payload[..]), "echo {sequence} came back changed");
            })
        });
    }
}

/// Sends `request` until `look` finds the answer among what comes in.
fn exchange<R>(net: &mut Net, request: &[u8], look: impl Fn(&[u8]) -> Option<R>) -> R {
    const RETRY_NS: u64 = 1_000_000_000;
    let end_ns = cpu::now_ns() + PATIENCE_NS;
    while cpu::now_ns() < end_ns {
        let mut packet = net.new_tx_buffer(request.len());
        packet.packet_mut().copy_from_slice(request);
        net.send(packet).expect("a packet sent");
        let retry_ns = cpu::now_ns() + RETRY_NS;
        while cpu::now_ns() < retry_ns {
            if !net.can_recv() {
                cpu::nap();
                continue;
            }
            let packet = net.receive().expect("a packet");
            let found = look(packet.packet());
            net.recycle_rx_buffer(packet).expect("room in the queue");
            if let Some(found) = found {
                return found;
            }
        }
    }
    panic!("the gateway does not answer");
}

fn arp(here: [u8; 6]) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend_from_slice(&[0xff; 6]);
    packet.extend_from_slice(&here);
    // ARP; Ethernet, IPv4, their address lengths, request.
    packet.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    packet.extend_from_slice(&here);
    packet.extend_from_slice(&HERE);
    packet.extend_from_slice(&[0; 6]);
    packet.extend_from_slice(&GATEWAY);
    packet
}

fn ping(here: [u8; 6], gateway: [u8; 6], sequence: u16, payload: &[u8]) -> Vec<u8> {
    // Echo request; checksum to come; an identifier.
    let mut icmp = Vec::from([8, 0, 0, 0, 0x53, 0x4d]);
    icmp.extend_from_slice(&sequence.to_be_bytes());
    icmp.extend_from_slice(payload);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);

    // Version and length of the header; length; identification, fragments; time to live, ICMP; checksum to come.
    let mut ip = Vec::from([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0]);
    ip[2..4].copy_from_slice(&(20 + icmp.len() as u16).to_be_bytes());
    ip.extend_from_slice(&HERE);
    ip.extend_from_slice(&GATEWAY);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);

    [&gateway[..], &here, &[8, 0], &ip, &icmp].concat()
}

/// The Internet checksum, of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!(folded + (folded >> 16)) as u16).to_be_bytes()
}
