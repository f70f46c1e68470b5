//! The whole reference datapath, played from a script that a fuzzer writes.
//!
//! A script is a row of steps, each a byte and what belongs to it. Every row of bytes is one.
//!
//! | first byte, less the hook (0 to 4) | then |
//! |---|---|
//! | 0 | length (two bytes, little-endian), a frame: it comes in |
//! | 5 | a number: what came out at that step comes in |
//! | 10 | a number, TCP flags: the answer to what came out comes in |
//! | 15 | a number: an error about what came out comes in |
//! | 20 | seconds: time passes |

use super::laws::{Laws, Passage};
use crate::fixtures::{Input, fixtures};
use crate::{Action, Fixture, MemoryTables, World, run};
use lb_common::abi::Hook;

/// Steps that a script plays at most: what comes after adds time and nothing new.
const STEPS: usize = 64;
/// Programs that see packets.
pub const PACKET_HOOKS: [Hook; 5] =
    [Hook::UplinkXdp, Hook::UplinkIngress, Hook::UplinkEgress, Hook::PodIngress, Hook::PodEgress];

const KINDS: usize = 5;
const FRAME: u8 = 0;
const OUTPUT: u8 = 5;
const ANSWER: u8 = 10;
const ERROR: u8 = 15;

/// Plays scripts on one node, which each finds without flows.
pub struct Stage {
    world: World,
    laws: Laws,
}

impl Stage {
    /// [`World::example`], with few flows so that tables get full.
    pub fn new() -> Self {
        let mut world = World::example();
        (world.config.ipv4.flow_set_mask, world.config.ipv6.flow_set_mask) = (15, 15);
        let laws = Laws::new(&world);
        Self { world, laws }
    }

    /// Plays a script.
    ///
    /// # Panics
    /// When a law does not hold.
    pub fn play(&self, script: &[u8]) {
        let tables = MemoryTables::new(&self.world);
        let mut outputs: Vec<Vec<u8>> = Vec::new();
        let mut rest = script;
        for _ in 0..STEPS {
            let Some((first, after)) = rest.split_first() else { return };
            rest = after;
            let hook = PACKET_HOOKS[usize::from(*first) % PACKET_HOOKS.len()];
            let mut next = || {
                let (byte, after) = rest.split_first()?;
                rest = after;
                Some(*byte)
            };
            let kind = usize::from(*first) / PACKET_HOOKS.len() % KINDS;
            let input = match kind {
                0 => {
                    let (Some(low), Some(high)) = (next(), next()) else { return };
                    let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
                    let (frame, after) = rest.split_at(length);
                    rest = after;
                    Some(frame.to_vec())
                }
                4 => {
                    tables.pass_seconds(next().unwrap_or_default().into());
                    None
                }
                _ => {
                    let earlier = outputs.get(usize::from(next().unwrap_or_default())).cloned();
                    match kind {
                        1 => earlier,
                        2 => {
                            let flags = next().unwrap_or_default();
                            earlier.and_then(|frame| super::traffic::answer_to(&frame, flags))
                        }
                        _ => earlier.and_then(|frame| super::traffic::error_about(&frame, true)),
                    }
                }
            };
            if let Some(before) = input {
                outputs.push(self.pass(hook, before, &tables));
            }
        }
    }

    /// Runs a frame through a hook, by the laws; what came out, or nothing.
    fn pass(&self, hook: Hook, before: Vec<u8>, tables: &MemoryTables) -> Vec<u8> {
        let mut after = before.clone();
        let (action, reason) = run(hook, &mut after, tables);
        self.laws.check(&Passage { hook, before: &before, after: &after, action, reason });
        if action == Action::Drop { Vec::new() } else { after }
    }
}

impl Default for Stage {
    fn default() -> Self {
        Self::new()
    }
}

/// The fixture list as scripts: where fuzzing starts.
pub fn scripts() -> Vec<Vec<u8>> {
    fixtures().iter().map(script_of).collect()
}

/// The frames of the fixture list that are there from the start, without their Ethernet headers.
pub fn packets() -> Vec<Vec<u8>> {
    let fixtures = fixtures();
    let steps = fixtures.iter().flat_map(|fixture| &fixture.steps);
    let mut packets: Vec<_> = steps
        .filter(|step| matches!(step.input, Input::Frame(_) | Input::Bytes(_)))
        .map(|step| step.bytes(&[]).split_off(lb_common::wire::ETHERNET_LENGTH))
        .collect();
    packets.sort();
    packets.dedup();
    packets
}

fn script_of(fixture: &Fixture) -> Vec<u8> {
    let mut script = Vec::new();
    for step in &fixture.steps {
        let hook = step.hook as u8;
        match &step.input {
            Input::OutputOf(step) => script.extend([OUTPUT + hook, *step as u8]),
            Input::AnswerTo(step, flags) => script.extend([ANSWER + hook, *step as u8, *flags]),
            Input::ErrorAbout(step, _) => script.extend([ERROR + hook, *step as u8]),
            Input::Frame(_) | Input::Bytes(_) => {
                let frame = step.bytes(&[]);
                script.push(FRAME + hook);
                script.extend((frame.len() as u16).to_le_bytes());
                script.extend(frame);
            }
        }
    }
    script
}
