//! Which requester IDs, and so which StreamIDs, a function has.

mod common;

use common::{ONE_TREE, TWO_IORT};
use smmuv3_discovery::Stream;
use smmuv3_discovery::dt::DeviceTree;
use smmuv3_discovery::iort::Iort;
use smmuv3_discovery::pci::{Bridge, BridgeKind, PathError, Rid, StreamsError, device_streams, requester_ids};

use BridgeKind::{Conventional, PciToPcie, PcieToPci, Port};

fn bridge(bus: u8, device: u8, kind: BridgeKind, secondary: u8) -> Bridge {
    Bridge { rid: Rid::new(bus, device, 0), kind, secondary }
}

fn ids(function: Rid, path: &[Bridge]) -> Vec<String> {
    requester_ids(function, path).unwrap().map(|rid| rid.to_string()).collect()
}

#[test]
fn requester_ids_are_bus_device_function() {
    assert_eq!(Rid::new(0x81, 0x1f, 7).0, 0x81ff);
    assert_eq!(Rid::new(0, 3, 0).0, 0x18);
    // What is too large does not spill over.
    assert_eq!(Rid::new(1, 32, 8).0, 0x100);
    assert_eq!(Rid(0x81fa).to_string(), "81:1f.2");
    assert_eq!(Rid(0x81fa).bus(), 0x81);
}

#[test]
fn the_port_type_is_in_bits_7_to_4() {
    let kind = BridgeKind::from_capability;
    assert_eq!(kind(None), Some(Conventional));
    for (register, expected) in
        [(0x0042, Port), (0x0152, Port), (0x3e62, Port), (0x0071, PcieToPci), (0x0082, PciToPcie)]
    {
        assert_eq!(kind(Some(register)), Some(expected), "{register:#x}");
    }
    // Endpoints, and the root complex's own.
    for register in [0x0002, 0x0012, 0x0092, 0x00a2, 0x0032] {
        assert_eq!(kind(Some(register)), None, "{register:#x}");
    }
}

#[test]
fn behind_ports_and_switches_each_function_has_its_own_id() {
    assert_eq!(ids(Rid::new(0, 3, 1), &[]), ["00:03.1"]);
    let path = [bridge(0, 1, Port, 1), bridge(1, 0, Port, 2), bridge(2, 5, Port, 3)];
    for function in 0..8 {
        assert_eq!(ids(Rid::new(3, 0, function), &path), [format!("03:00.{function}")]);
    }
}

#[test]
fn a_pcie_to_pci_bridge_signs_as_the_first_function_of_its_secondary_bus() {
    let path = [bridge(0, 1, Port, 1), bridge(1, 0, PcieToPci, 2)];
    assert_eq!(ids(Rid::new(2, 5, 1), &path), ["02:05.1", "02:00.0"]);
    // Who is the first function itself has one ID.
    assert_eq!(ids(Rid::new(2, 0, 0), &path), ["02:00.0"]);
    // The bridge's own DMA passes only what is above it.
    assert_eq!(ids(path[1].rid, &path[..1]), ["01:00.0"]);
}

#[test]
fn bridges_between_conventional_buses_sign_too() {
    // The PCIe side sees: the function's own in PCI-X, that of the inner bridge, that of the outer bridge's secondary bus.
    let path = [bridge(0, 1, Port, 1), bridge(1, 0, PcieToPci, 2), bridge(2, 4, Conventional, 3)];
    assert_eq!(ids(Rid::new(3, 6, 0), &path), ["03:06.0", "02:04.0", "02:00.0"]);
}

#[test]
fn a_conventional_bridge_below_pcie_may_sign_either_way() {
    let function = Rid::new(2, 5, 0);
    assert_eq!(
        ids(function, &[bridge(0, 1, Port, 1), bridge(1, 3, Conventional, 2)]),
        ["02:05.0", "01:03.0", "02:00.0"]
    );
    assert_eq!(ids(function, &[bridge(0, 30, Conventional, 2)]), ["02:05.0", "00:1e.0", "02:00.0"]);
}

#[test]
fn pcie_behind_conventional_pci_is_signed_for_at_each_crossing() {
    let path =
        [bridge(0, 1, PcieToPci, 1), bridge(1, 2, PciToPcie, 2), bridge(2, 0, Port, 3), bridge(3, 0, Conventional, 4)];
    assert_eq!(ids(Rid::new(3, 1, 0), &path[..3]), ["03:01.0", "01:02.0", "01:00.0"]);
    // PCIe is above the last.
    assert_eq!(ids(Rid::new(4, 1, 0), &path), ["04:01.0", "03:00.0", "04:00.0", "01:02.0", "01:00.0"]);
}

#[test]
fn a_path_must_hang_together() {
    let path = [bridge(0, 1, Port, 1), bridge(1, 0, Port, 2)];
    let error = |function, path: &[Bridge]| requester_ids(function, path).err();
    let elsewhere = Rid::new(3, 0, 0);
    assert_eq!(error(elsewhere, &path), Some(PathError { below: elsewhere, bus: 2 }));
    let gap = [path[0], bridge(2, 0, Port, 3)];
    assert_eq!(error(elsewhere, &gap), Some(PathError { below: gap[1].rid, bus: 1 }));
    let expected = "03:00.0 is not on bus 0x02, which is behind the bridge above it";
    assert_eq!(error(elsewhere, &path).unwrap().to_string(), expected);
}

#[test]
fn a_device_of_the_driver_gets_all_streams() {
    let tree = DeviceTree::new(ONE_TREE).unwrap();
    let host = tree.host_bridges().next().unwrap();
    let path = [bridge(0, 1, Port, 1), bridge(1, 0, PcieToPci, 2)];
    let streams = device_streams(Rid::new(2, 5, 0), &path, |rid| host.stream_id(rid)).unwrap().unwrap();
    assert_eq!((streams.smmu, &streams.ids[..]), (0, &[0x228, 0x200][..]));

    // The same path in a table that has buses 0 and 1 behind the SMMU, and bus 2 not.
    let iort = Iort::new(TWO_IORT).unwrap();
    let look_up = |rid| iort.stream_id(0, rid);
    assert_eq!(device_streams(Rid::new(2, 5, 0), &path, look_up), Ok(None));
    let streams = device_streams(Rid::new(129, 0, 1), &[bridge(128, 1, Port, 129)], look_up).unwrap().unwrap();
    assert_eq!((streams.smmu, &streams.ids[..]), (1, &[0x8101][..]));
}

#[test]
fn streams_are_given_once_and_at_one_smmu() {
    type Map = fn(Rid) -> Result<Option<Stream>, &'static str>;
    let function = Rid::new(2, 5, 0);
    let path = [bridge(0, 1, PcieToPci, 1), bridge(1, 1, Conventional, 2)];
    let streams =
        |map: Map| device_streams(function, &path, map).map(|streams| streams.map(|streams| streams.ids.to_vec()));
    assert_eq!(ids(function, &path), ["02:05.0", "01:01.0", "01:00.0"]);
    // A mask in the map may make them one.
    assert_eq!(
        streams(|rid| Ok(Some(Stream { smmu: 0, id: u32::from(rid.0) & 0xff00 }))),
        Ok(Some(vec![0x200, 0x100]))
    );
    let divided = |other| Err(StreamsError::Divided { function, other });
    let by_bus: Map = |rid| Ok(Some(Stream { smmu: rid.bus().into(), id: 0 }));
    assert_eq!(streams(by_bus), divided(Rid::new(1, 1, 0)));
    assert_eq!(streams(|rid| Ok((rid.0 != 0x100).then_some(Stream { smmu: 0, id: 0 }))), divided(Rid(0x100)));
    assert_eq!(streams(|rid| Ok((rid.0 == 0x100).then_some(Stream { smmu: 0, id: 0 }))), divided(Rid(0x100)));
    assert_eq!(streams(|_| Ok(None)), Ok(None));
    assert_eq!(streams(|rid| if rid.0 == 0x108 { Err("no") } else { Ok(None) }), Err(StreamsError::LookUp("no")));
    let elsewhere = Rid::new(9, 0, 0);
    let error = device_streams(elsewhere, &path, |_| Ok::<_, ()>(None));
    assert_eq!(error, Err(StreamsError::Path(PathError { below: elsewhere, bus: 2 })));
}

#[test]
fn sixteen_streams_are_the_most() {
    let stream = |rid: Rid| Ok::<_, ()>(Some(Stream { smmu: 0, id: rid.0.into() }));
    // Below the first, each conventional bridge adds its own.
    let deep = |bridges: u8| {
        let below = (1..bridges).map(|bus| bridge(bus, 1, Conventional, bus + 1));
        let path: Vec<_> = [bridge(0, 1, PcieToPci, 1)].into_iter().chain(below).collect();
        device_streams(Rid::new(bridges, 1, 0), &path, stream)
    };
    assert_eq!(deep(15).unwrap().unwrap().ids.len(), 16);
    assert_eq!(deep(16), Err(StreamsError::TooMany(Rid::new(16, 1, 0))));
}
