//! The emulated card: its name, size and attributes.

use std::sync::OnceLock;

use crate::settings::settings;

pub struct Card {
    pub name: &'static str,
    pub major: i32,
    pub minor: i32,
    pub sms: i32,
    pub shared_optin: i32,
    pub shared_per_sm: i32,
    pub threads_per_sm: i32,
    pub blocks_per_sm: i32,
    pub l2: i32,
    pub memory: u64,
}

const GIB: u64 = 1 << 30;

const CARDS: [Card; 8] = [
    Card {
        name: "Emulated T4",
        major: 7,
        minor: 5,
        sms: 40,
        shared_optin: 65_536,
        shared_per_sm: 65_536,
        threads_per_sm: 1024,
        blocks_per_sm: 16,
        l2: 4 << 20,
        memory: 15 * GIB,
    },
    Card {
        name: "Emulated A100",
        major: 8,
        minor: 0,
        sms: 108,
        shared_optin: 166_912,
        shared_per_sm: 167_936,
        threads_per_sm: 2048,
        blocks_per_sm: 32,
        l2: 40 << 20,
        memory: 80 * GIB,
    },
    Card {
        name: "Emulated RTX 3090",
        major: 8,
        minor: 6,
        sms: 82,
        shared_optin: 101_376,
        shared_per_sm: 102_400,
        threads_per_sm: 1536,
        blocks_per_sm: 16,
        l2: 6 << 20,
        memory: 24 * GIB,
    },
    Card {
        name: "Emulated L4",
        major: 8,
        minor: 9,
        sms: 58,
        shared_optin: 101_376,
        shared_per_sm: 102_400,
        threads_per_sm: 1536,
        blocks_per_sm: 24,
        l2: 48 << 20,
        memory: 23 * GIB,
    },
    Card {
        name: "Emulated H100",
        major: 9,
        minor: 0,
        sms: 132,
        shared_optin: 232_448,
        shared_per_sm: 233_472,
        threads_per_sm: 2048,
        blocks_per_sm: 32,
        l2: 50 << 20,
        memory: 80 * GIB,
    },
    Card {
        name: "Emulated B200",
        major: 10,
        minor: 0,
        sms: 148,
        shared_optin: 232_448,
        shared_per_sm: 233_472,
        threads_per_sm: 2048,
        blocks_per_sm: 32,
        l2: 126 << 20,
        memory: 180 * GIB,
    },
    Card {
        name: "Emulated B300",
        major: 10,
        minor: 3,
        sms: 148,
        shared_optin: 232_448,
        shared_per_sm: 233_472,
        threads_per_sm: 2048,
        blocks_per_sm: 32,
        l2: 126 << 20,
        memory: 270 * GIB,
    },
    Card {
        name: "Emulated RTX 5090",
        major: 12,
        minor: 0,
        sms: 170,
        shared_optin: 101_376,
        shared_per_sm: 102_400,
        threads_per_sm: 1536,
        blocks_per_sm: 24,
        l2: 96 << 20,
        memory: 32 * GIB,
    },
];

/// Returns the emulated card. A generation that is not in the table ends the process.
pub fn card() -> &'static Card {
    static CARD: OnceLock<&'static Card> = OnceLock::new();
    CARD.get_or_init(|| {
        let sm = settings().sm;
        CARDS.iter().find(|card| card.major * 10 + card.minor == sm).unwrap_or_else(|| {
            eprintln!("emulated card: no card has compute capability `{sm}`");
            std::process::abort()
        })
    })
}

/// Returns the bytes of device memory.
pub fn memory() -> u64 {
    settings().memory_mib.map_or(card().memory, |mib| mib << 20)
}

/// Returns the value of a `CUdevice_attribute`.
pub fn attribute(number: i32) -> Option<i32> {
    let card = card();
    Some(match number {
        1 => 1024,       // threads of a block
        2 | 3 => 1024,   // block x, y
        4 => 64,         // block z
        5 => i32::MAX,   // grid x
        6 | 7 => 65_535, // grid y, z
        8 => 49_152,     // shared memory of a block without asking
        9 => 65_536,     // constant memory
        10 => 32,        // warp
        11 => i32::MAX,  // pitch
        12 => 65_536,    // registers of a block
        13 => 1_980_000, // clock, kHz
        14 => 512,       // texture alignment
        16 => card.sms,
        31 => 1,         // concurrent kernels
        36 => 2_619_000, // memory clock, kHz
        37 => 5120,      // bus width
        38 => card.l2,
        39 => card.threads_per_sm,
        40 => 3, // copy engines
        41 => 1, // unified addressing
        75 => card.major,
        76 => card.minor,
        78 => 1, // stream priorities
        81 => card.shared_per_sm,
        82 => 65_536, // registers of a multiprocessor
        83 => 1,      // managed memory
        95 => 1,      // cooperative launch
        97 => card.shared_optin,
        106 => card.blocks_per_sm,
        115 => 1, // memory pools
        _ => return None,
    })
}
