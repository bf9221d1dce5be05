//! Registers against IHI 0070 G.b: offsets from §6.2.1 and §6.2.2, bit numbers from the field headings of §6.3.

use core::fmt::Debug;

use super::*;

/// Name, highest and lowest bit, getter.
type Field<R> = (&'static str, u32, u32, fn(R) -> u32);

/// Each bit alone, of all 32: it shows in the field that has it and in no other.
fn check<R: Copy + Debug>(register: fn(u32) -> R, fields: &[Field<R>]) {
    for bit in 0..32 {
        for &(name, hi, lo, get) in fields {
            let expected = if (lo..=hi).contains(&bit) { 1 << (bit - lo) } else { 0 };
            assert_eq!(get(register(1 << bit)), expected, "bit {bit} and {name}");
        }
    }
    for &(name, hi, lo, get) in fields {
        assert_eq!(get(register(u32::MAX)), (1 << (hi - lo + 1)) - 1, "the width of {name}");
    }
}

#[test]
fn offsets_are_those_of_the_memory_map() {
    for (name, is, should_be) in [
        ("IDR0", offset::IDR0, 0x0000),
        ("IDR1", offset::IDR1, 0x0004),
        ("IDR2", offset::IDR2, 0x0008),
        ("IDR3", offset::IDR3, 0x000c),
        ("IDR4", offset::IDR4, 0x0010),
        ("IDR5", offset::IDR5, 0x0014),
        ("IIDR", offset::IIDR, 0x0018),
        ("AIDR", offset::AIDR, 0x001c),
        ("CR0", offset::CR0, 0x0020),
        ("CR0ACK", offset::CR0ACK, 0x0024),
        ("CR1", offset::CR1, 0x0028),
        ("CR2", offset::CR2, 0x002c),
        ("STATUSR", offset::STATUSR, 0x0040),
        ("GBPA", offset::GBPA, 0x0044),
        ("IRQ_CTRL", offset::IRQ_CTRL, 0x0050),
        ("IRQ_CTRLACK", offset::IRQ_CTRLACK, 0x0054),
        ("GERROR", offset::GERROR, 0x0060),
        ("GERRORN", offset::GERRORN, 0x0064),
        ("GERROR_IRQ_CFG0", offset::GERROR_IRQ_CFG0, 0x0068),
        ("STRTAB_BASE", offset::STRTAB_BASE, 0x0080),
        ("STRTAB_BASE_CFG", offset::STRTAB_BASE_CFG, 0x0088),
        ("CMDQ_BASE", offset::CMDQ_BASE, 0x0090),
        ("CMDQ_PROD", offset::CMDQ_PROD, 0x0098),
        ("CMDQ_CONS", offset::CMDQ_CONS, 0x009c),
        ("EVENTQ_BASE", offset::EVENTQ_BASE, 0x00a0),
        ("EVENTQ_IRQ_CFG0", offset::EVENTQ_IRQ_CFG0, 0x00b0),
        ("PRIQ_BASE", offset::PRIQ_BASE, 0x00c0),
        ("IDR6", offset::IDR6, 0x0190),
        ("CMDQ_CONTROL_PAGE_BASE0", offset::cmdq_control_page_base(0), 0x4000),
        ("CMDQ_CONTROL_PAGE_CFG0", offset::cmdq_control_page_cfg(0), 0x4008),
        ("CMDQ_CONTROL_PAGE_STATUS0", offset::cmdq_control_page_status(0), 0x400c),
        ("CMDQ_CONTROL_PAGE_BASE255", offset::cmdq_control_page_base(255), 0x5fe0),
        ("CMDQ_CONTROL_PAGE_CFG255", offset::cmdq_control_page_cfg(255), 0x5fe8),
        ("CMDQ_CONTROL_PAGE_STATUS255", offset::cmdq_control_page_status(255), 0x5fec),
        // From the start of a queue's registers.
        ("ECMDQ_BASE", offset::ECMDQ_BASE, 0x00),
        ("ECMDQ_PROD", offset::ECMDQ_PROD, 0x08),
        ("ECMDQ_CONS", offset::ECMDQ_CONS, 0x0c),
        // Page 1 is at 0x10000.
        ("EVENTQ_PROD", offset::EVENTQ_PROD, 0x1_00a8),
        ("EVENTQ_CONS", offset::EVENTQ_CONS, 0x1_00ac),
    ] {
        assert_eq!(is, should_be, "{name}");
    }
}

#[test]
fn id_registers_have_their_fields_where_the_specification_puts_them() {
    check(
        Idr0::new_with_raw_value,
        &[
            ("S2P", 0, 0, |r| r.s2p().into()),
            ("S1P", 1, 1, |r| r.s1p().into()),
            ("TTF", 3, 2, |r| r.ttf().into()),
            ("COHACC", 4, 4, |r| r.cohacc().into()),
            ("BTM", 5, 5, |r| r.btm().into()),
            ("HTTU", 7, 6, |r| r.httu().into()),
            ("Hyp", 9, 9, |r| r.hyp().into()),
            ("ATS", 10, 10, |r| r.ats().into()),
            ("NS1ATS", 11, 11, |r| r.ns1ats().into()),
            ("ASID16", 12, 12, |r| r.asid16().into()),
            ("MSI", 13, 13, |r| r.msi().into()),
            ("SEV", 14, 14, |r| r.sev().into()),
            ("ATOS", 15, 15, |r| r.atos().into()),
            ("PRI", 16, 16, |r| r.pri().into()),
            ("VMID16", 18, 18, |r| r.vmid16().into()),
            ("CD2L", 19, 19, |r| r.cd2l().into()),
            ("TTENDIAN", 22, 21, |r| r.ttendian().into()),
            ("STALL_MODEL", 25, 24, |r| r.stall_model().into()),
            ("TERM_MODEL", 26, 26, |r| r.term_model().into()),
            ("ST_LEVEL", 28, 27, |r| r.st_level().into()),
        ],
    );
    check(
        Idr1::new_with_raw_value,
        &[
            ("SIDSIZE", 5, 0, |r| r.sidsize().into()),
            ("SSIDSIZE", 10, 6, |r| r.ssidsize().into()),
            ("PRIQS", 15, 11, |r| r.priqs().into()),
            ("EVENTQS", 20, 16, |r| r.eventqs().into()),
            ("CMDQS", 25, 21, |r| r.cmdqs().into()),
            ("ATTR_PERMS_OVR", 26, 26, |r| r.attr_perms_ovr().into()),
            ("ATTR_TYPES_OVR", 27, 27, |r| r.attr_types_ovr().into()),
            ("QUEUES_PRESET", 29, 29, |r| r.queues_preset().into()),
            ("TABLES_PRESET", 30, 30, |r| r.tables_preset().into()),
            ("ECMDQ", 31, 31, |r| r.ecmdq().into()),
        ],
    );
    check(
        Idr3::new_with_raw_value,
        &[
            ("HAD", 2, 2, |r| r.had().into()),
            ("XNX", 4, 4, |r| r.xnx().into()),
            ("MPAM", 7, 7, |r| r.mpam().into()),
            ("FWB", 8, 8, |r| r.fwb().into()),
            ("STT", 9, 9, |r| r.stt().into()),
            ("RIL", 10, 10, |r| r.ril().into()),
            ("BBML", 12, 11, |r| r.bbml().into()),
        ],
    );
    check(
        Idr5::new_with_raw_value,
        &[
            ("OAS", 2, 0, |r| r.oas().into()),
            ("GRAN4K", 4, 4, |r| r.gran4k().into()),
            ("GRAN16K", 5, 5, |r| r.gran16k().into()),
            ("GRAN64K", 6, 6, |r| r.gran64k().into()),
            ("VAX", 11, 10, |r| r.vax().into()),
        ],
    );
    check(
        Aidr::new_with_raw_value,
        &[("ArchMinorRev", 3, 0, |r| r.minor().into()), ("ArchMajorRev", 7, 4, |r| r.major().into())],
    );
}

#[test]
fn control_registers_have_their_fields_where_the_specification_puts_them() {
    check(
        Cr0::new_with_raw_value,
        &[
            ("SMMUEN", 0, 0, |r| r.smmuen().into()),
            ("PRIQEN", 1, 1, |r| r.priqen().into()),
            ("EVENTQEN", 2, 2, |r| r.eventqen().into()),
            ("CMDQEN", 3, 3, |r| r.cmdqen().into()),
            ("ATSCHK", 4, 4, |r| r.atschk().into()),
        ],
    );
    check(
        Cr1::new_with_raw_value,
        &[
            ("QUEUE_IC", 1, 0, |r| r.queue_ic().into()),
            ("QUEUE_OC", 3, 2, |r| r.queue_oc().into()),
            ("QUEUE_SH", 5, 4, |r| r.queue_sh().into()),
            ("TABLE_IC", 7, 6, |r| r.table_ic().into()),
            ("TABLE_OC", 9, 8, |r| r.table_oc().into()),
            ("TABLE_SH", 11, 10, |r| r.table_sh().into()),
        ],
    );
    check(
        Cr2::new_with_raw_value,
        &[
            ("E2H", 0, 0, |r| r.e2h().into()),
            ("RECINVSID", 1, 1, |r| r.recinvsid().into()),
            ("PTM", 2, 2, |r| r.ptm().into()),
        ],
    );
    check(
        Gbpa::new_with_raw_value,
        &[
            ("SHCFG", 13, 12, |r| r.shcfg().into()),
            ("ABORT", 20, 20, |r| r.abort().into()),
            ("Update", 31, 31, |r| r.update().into()),
        ],
    );
    check(
        IrqCtrl::new_with_raw_value,
        &[
            ("GERROR_IRQEN", 0, 0, |r| r.gerror_irqen().into()),
            ("PRIQ_IRQEN", 1, 1, |r| r.priq_irqen().into()),
            ("EVENTQ_IRQEN", 2, 2, |r| r.eventq_irqen().into()),
        ],
    );
    check(
        StrtabBaseCfg::new_with_raw_value,
        &[
            ("LOG2SIZE", 5, 0, |r| r.log2size().into()),
            ("SPLIT", 10, 6, |r| r.split().into()),
            ("FMT", 17, 16, |r| r.fmt().into()),
        ],
    );
    check(
        Idr6::new_with_raw_value,
        &[
            ("CMDQ_CONTROL_PAGE_LOG2NUMQ", 19, 16, |r| r.cmdq_control_page_log2numq().into()),
            ("CMDQ_CONTROL_PAGE_LOG2NUMP", 27, 24, |r| r.cmdq_control_page_log2nump().into()),
        ],
    );
    check(
        EcmdqProd::new_with_raw_value,
        &[
            ("WR", 19, 0, |r| r.wr().into()),
            ("ERRACK", 23, 23, |r| r.errack().into()),
            ("EN", 31, 31, |r| r.en().into()),
        ],
    );
    check(
        EcmdqCons::new_with_raw_value,
        &[
            ("RD", 19, 0, |r| r.rd().into()),
            ("ERR", 23, 23, |r| r.err().into()),
            ("ERR_REASON", 26, 24, |r| r.err_reason().into()),
            ("ENACK", 31, 31, |r| r.enack().into()),
        ],
    );
    check(CmdqCons::new_with_raw_value, &[("RD", 19, 0, |r| r.rd().into()), ("ERR", 30, 24, |r| r.err().into())]);
}

#[test]
fn what_is_written_lands_in_the_bits_that_are_read() {
    let cr0 = Cr0::default();
    let cr1 = Cr1::default();
    let cr2 = Cr2::default();
    for (raw, expected) in [
        (cr0.with_smmuen(true).raw_value(), 0x01),
        (cr0.with_eventqen(true).raw_value(), 0x04),
        (cr0.with_cmdqen(true).raw_value(), 0x08),
        (cr0.with_atschk(true).raw_value(), 0x10),
        (cr1.with_queue_ic(u2::new(1)).with_queue_oc(u2::new(1)).with_queue_sh(u2::new(3)).raw_value(), 0x035),
        (cr1.with_table_ic(u2::new(1)).with_table_oc(u2::new(1)).with_table_sh(u2::new(3)).raw_value(), 0xd40),
        (cr2.with_e2h(true).raw_value(), 1),
        (cr2.with_recinvsid(true).raw_value(), 2),
        (cr2.with_ptm(true).raw_value(), 4),
        (Gbpa::default().with_update(true).with_abort(true).with_shcfg(u2::new(1)).raw_value(), 0x8010_1000),
        (IrqCtrl::default().with_gerror_irqen(true).with_eventq_irqen(true).raw_value(), 5),
        (EcmdqProd::default().with_wr(u20::new(0x12345)).with_errack(true).raw_value(), 0x0081_2345),
        (EcmdqProd::default().with_en(true).raw_value(), 0x8000_0000),
        (EcmdqCons::default().with_rd(u20::new(0x12345)).with_err(true).raw_value(), 0x0081_2345),
        (
            StrtabBaseCfg::default().with_log2size(u6::new(20)).with_split(u5::new(8)).with_fmt(u2::new(1)).raw_value(),
            0x0001_0214,
        ),
    ] {
        assert_eq!(raw, expected);
    }
}

#[test]
fn global_errors_are_the_bits_of_gerror() {
    for (error, bit) in [
        (Gerror::CMDQ_ERR, 0),
        (Gerror::EVENTQ_ABT_ERR, 2),
        (Gerror::PRIQ_ABT_ERR, 3),
        (Gerror::MSI_CMDQ_ABT_ERR, 4),
        (Gerror::MSI_EVENTQ_ABT_ERR, 5),
        (Gerror::MSI_PRIQ_ABT_ERR, 6),
        (Gerror::MSI_GERROR_ABT_ERR, 7),
        (Gerror::SFM_ERR, 8),
        (Gerror::CMDQP_ERR, 9),
        (Gerror::DPT_ERR, 10),
    ] {
        assert_eq!(error.bits(), 1 << bit, "{error:?}");
    }
    assert_eq!(Gerror::all().bits(), 0x7fd);
}

#[test]
fn base_registers_have_their_fields_where_the_specification_puts_them() {
    // STRTAB_BASE: RA 62, ADDR 55:6. *Q_BASE: RA or WA 62, ADDR 55:5, LOG2SIZE 4:0.
    assert_eq!(STRTAB_BASE_RA, 0x4000_0000_0000_0000);
    assert_eq!(STRTAB_BASE_ADDR, 0x00ff_ffff_ffff_ffc0);
    assert_eq!(QUEUE_BASE_ALLOC, 0x4000_0000_0000_0000);
    assert_eq!(QUEUE_BASE_ADDR, 0x00ff_ffff_ffff_ffe0);
    // OVFLG and OVACKFLG.
    assert_eq!(EVENTQ_OVERFLOW, 0x8000_0000);
}

#[test]
fn control_pages_and_their_queues_are_where_the_specification_puts_them() {
    // ADDR 55:16, CMDQGS 2:1, CMDQ_CONTROL_PAGE_PRESET 0.
    let base = CmdqControlPageBase::new_with_raw_value(0x00ab_cdef_1234_0003);
    assert_eq!(
        (base.offset(), base.cmdqgs().value(), base.cmdq_control_page_preset()),
        (0x00ab_cdef_1234_0000, 1, true)
    );
    let all = CmdqControlPageBase::new_with_raw_value(u64::MAX);
    assert_eq!((all.offset(), all.cmdqgs().value()), (0x00ff_ffff_ffff_0000, 3));
    assert!(!CmdqControlPageBase::new_with_raw_value(!1).cmdq_control_page_preset());
    assert_eq!(CMDQ_CONTROL_PAGE_SIZE, 0x1_0000);
    // The specification's own example: 128 queues are 512 bytes apart.
    let idr6 = Idr6::new_with_raw_value(0x0307_0000);
    assert_eq!((idr6.pages(), idr6.queues_per_page(), idr6.queue(0), idr6.queue(3)), (8, 128, 0, 0x600));
    for (numq, apart) in [(0, 0x1_0000), (1, 0x8000), (8, 0x100)] {
        assert_eq!(Idr6::new_with_raw_value(numq << 16).queue(1), apart);
    }
    // More than the maximum is never believed.
    assert_eq!(Idr6::new_with_raw_value(0x0f0f_0000).pages(), 256);
    assert_eq!(Idr6::new_with_raw_value(0x0f0f_0000).queues_per_page(), 256);
}

#[test]
fn command_errors_have_the_codes_of_the_specification() {
    for (code, error) in [
        (0, CmdqError::None),
        (1, CmdqError::Illegal),
        (2, CmdqError::Abort),
        (3, CmdqError::AtcInvSync),
        (4, CmdqError::Unknown(4)),
        (0x7f, CmdqError::Unknown(0x7f)),
    ] {
        assert_eq!(CmdqError::from(CmdqCons::new_with_raw_value(code << 24).err()), error);
        if code < 8 {
            assert_eq!(CmdqError::from(EcmdqCons::new_with_raw_value(code << 24).err_reason()), error);
        }
    }
}
