//! Made-up evidence: one that is right, and each way to be wrong.

use super::*;
use crate::chaos::evidence::Standing;

/// Two conversations of two members who each sent three messages; both have one device, which saw everything.
fn right() -> Evidence {
    let mut evidence =
        Evidence { conversations: vec!["p_1_2".into(), "r_1".into()], probes_count: true, ..Evidence::default() };
    for conversation in 0..2 {
        for counter in 0..3 {
            for member in 0..2 {
                evidence.sent.push(Sent {
                    origin: Origin { conversation, member, counter },
                    attempts: 1,
                    connection: 1,
                    place: counter,
                    answer: Answer::Accepted(id(conversation, member, counter)),
                    is_probe: counter == 2,
                });
            }
        }
        let archive: Vec<Entry> = (1..=6).map(|seq| entry(conversation, seq)).collect();
        for member in 0..2 {
            let who = format!("user {member}");
            evidence.views.push(View { who: who.clone(), conversation, shown: archive.clone() });
            evidence.audits.push(Audit {
                who,
                conversation,
                member,
                archive: archive.iter().map(|entry| Entry { via: Via::Answer, ..*entry }).collect(),
                // Of the sequences after 2, each has sent two.
                position: Some(Standing { last_seq: 6, read_seq: 2, unread: 2 }),
                unread_http: 2,
                read_acked: 2,
                read_sent: 3,
            });
        }
    }
    evidence
}

fn id(conversation: u32, member: u32, counter: u32) -> MessageId {
    let mut id = [7; 16];
    id[..3].copy_from_slice(&[conversation as u8, member as u8, counter as u8]);
    id
}

/// Sequence 1 is member 0's message 0, 2 is member 1's, and so on.
fn entry(conversation: u32, seq: u64) -> Entry {
    let (member, counter) = ((seq as u32 - 1) % 2, (seq as u32 - 1) / 2);
    let origin = Some(Origin { conversation, member, counter });
    Entry { seq, epoch: 5, message_id: id(conversation, member, counter), origin, is_from_sender: true, via: Via::Push }
}

fn judged(change: impl FnOnce(&mut Evidence)) -> (Counts, Vec<(Fault, u64)>) {
    let mut evidence = right();
    change(&mut evidence);
    let Outcome { counts, findings } = judge(evidence);
    (counts, findings.iter().map(|(fault, finding)| (fault, finding.count)).collect())
}

/// The first conversation's archive as all audits saw it, and what all devices were shown.
fn everywhere(evidence: &mut Evidence, change: impl Fn(&mut Vec<Entry>)) {
    evidence.audits.iter_mut().filter(|audit| audit.conversation == 0).for_each(|audit| change(&mut audit.archive));
    evidence.views.iter_mut().filter(|view| view.conversation == 0).for_each(|view| change(&mut view.shown));
}

#[test]
fn what_is_right_passes() {
    let (counts, faults) = judged(|_| {});
    assert_eq!(faults, []);
    let Counts { offered, acknowledged, archived, shown, lost, doubled, reordered, .. } = counts;
    assert_eq!((offered, acknowledged, archived, shown), (12, 12, 12, 24));
    assert_eq!((lost, doubled, reordered), (0, 0, 0));
}

#[test]
fn an_acknowledged_message_that_is_not_in_the_archive_is_lost() {
    let (counts, faults) = judged(|evidence| {
        everywhere(evidence, |entries| {
            entries.truncate(5);
        });
        for audit in evidence.audits.iter_mut().filter(|audit| audit.conversation == 0) {
            let unread = [2, 1][audit.member as usize];
            // The sixth was member 1's.
            audit.position = Some(Standing { last_seq: 5, read_seq: 2, unread: 3 - unread });
            audit.unread_http = 3 - unread;
        }
    });
    assert_eq!((faults, counts.lost), (vec![(Fault::Lost, 1)], 1));
}

#[test]
fn a_message_that_one_device_was_not_shown_is_lost() {
    let (counts, faults) = judged(|evidence| {
        evidence.views[0].shown.pop();
    });
    assert_eq!((faults, counts.lost), (vec![(Fault::Lost, 1)], 1));
}

#[test]
fn a_message_that_was_shown_twice_is_doubled() {
    let (counts, faults) = judged(|evidence| {
        let first = evidence.views[1].shown[0];
        evidence.views[1].shown.push(first);
    });
    assert_eq!((faults, counts.doubled), (vec![(Fault::Doubled, 1)], 1));
}

#[test]
fn a_message_with_two_sequences_is_stored_twice() {
    let (counts, faults) = judged(|evidence| {
        everywhere(evidence, |entries| entries.push(Entry { seq: 7, ..entries[0] }));
        for audit in evidence.audits.iter_mut().filter(|audit| audit.conversation == 0) {
            let unread = 2 + u64::from(audit.member == 1);
            audit.position = Some(Standing { last_seq: 7, read_seq: 2, unread });
            audit.unread_http = unread;
        }
    });
    // Both devices were shown it twice as well, and under a sequence that is not the first.
    assert!(faults.contains(&(Fault::StoredTwice, 1)) && faults.contains(&(Fault::Doubled, 2)), "{faults:?}");
    assert_eq!(counts.doubled, 3);
}

#[test]
fn showing_in_another_order_is_reordered() {
    let (counts, faults) = judged(|evidence| evidence.views[0].shown.swap(2, 3));
    assert_eq!((faults, counts.reordered), (vec![(Fault::Reordered, 1)], 1));
}

#[test]
fn storing_in_another_order_than_sent_is_reordered_unless_it_was_repeated() {
    let swap = |entries: &mut Vec<Entry>| {
        // Member 0's first and second message.
        entries.swap(0, 2);
        (entries[0].seq, entries[2].seq) = (1, 3);
    };
    let (counts, faults) = judged(|evidence| everywhere(evidence, swap));
    assert_eq!((faults, counts.reordered), (vec![(Fault::Reordered, 1)], 1));
    let (_, faults) = judged(|evidence| {
        everywhere(evidence, swap);
        evidence.sent[0].attempts = 2;
    });
    assert_eq!(faults, []);
    let (_, faults) = judged(|evidence| {
        everywhere(evidence, swap);
        evidence.sent[0].connection = 2;
    });
    assert_eq!(faults, []);
}

#[test]
fn a_sequence_that_is_left_out_is_a_gap() {
    let (_, faults) = judged(|evidence| {
        everywhere(evidence, |entries| entries[5].seq = 7);
        for audit in evidence.audits.iter_mut().filter(|audit| audit.conversation == 0) {
            audit.position = Some(Standing { last_seq: 7, read_seq: 2, unread: 2 });
        }
    });
    assert_eq!(faults, [(Fault::Gap, 1)]);
}

#[test]
fn two_archives_that_differ_disagree() {
    let (_, faults) = judged(|evidence| evidence.audits[1].archive[3].message_id = [1; 16]);
    assert!(faults.iter().any(|(fault, _)| *fault == Fault::Disagreement), "{faults:?}");
    let (_, faults) = judged(|evidence| {
        evidence.audits[1].archive.pop();
    });
    assert!(faults.iter().any(|(fault, _)| *fault == Fault::Disagreement), "{faults:?}");
}

#[test]
fn what_nobody_sent_is_found() {
    let stranger = |entries: &mut Vec<Entry>| {
        let origin = Some(Origin { conversation: 0, member: 1, counter: 99 });
        entries.push(Entry { seq: 7, message_id: [99; 16], origin, ..entries[5] });
    };
    let (_, faults) = judged(|evidence| {
        everywhere(evidence, stranger);
        for audit in evidence.audits.iter_mut().filter(|audit| audit.conversation == 0) {
            let unread = 2 + u64::from(audit.member == 0);
            audit.position = Some(Standing { last_seq: 7, read_seq: 2, unread });
            audit.unread_http = unread;
        }
    });
    assert_eq!(faults, [(Fault::NeverSent, 1)]);
}

#[test]
fn what_was_shown_and_is_not_archived_is_found() {
    let (_, faults) = judged(|evidence| {
        let last = evidence.views[0].shown[5];
        evidence.views[0].shown.push(Entry { seq: 7, message_id: [99; 16], ..last });
    });
    assert_eq!(faults, [(Fault::NotArchived, 1)]);
}

#[test]
fn altered_bodies_other_senders_ids_and_conversations_are_found() {
    let one = |change: fn(&mut Entry)| judged(|evidence| everywhere(evidence, |entries| change(&mut entries[4]))).1;
    assert!(one(|entry| entry.origin = None).contains(&(Fault::Altered, 1)));
    assert_eq!(one(|entry| entry.is_from_sender = false), [(Fault::Altered, 1)]);
    assert_eq!(one(|entry| entry.message_id = [3; 16]), [(Fault::WrongId, 1)]);
    let foreign = one(|entry| entry.origin = Some(Origin { conversation: 1, member: 0, counter: 2 }));
    assert!(foreign.contains(&(Fault::Foreign, 1)), "{foreign:?}");
}

#[test]
fn what_has_no_answer_or_was_refused_is_found() {
    let (counts, faults) = judged(|evidence| evidence.sent[0].answer = Answer::None);
    assert_eq!((faults, counts.unanswered), (vec![(Fault::Unanswered, 1)], 1));
    let (counts, faults) = judged(|evidence| evidence.sent[0].answer = Answer::Refused);
    assert_eq!((faults, counts.refused), (vec![(Fault::RefusedYetDelivered, 1), (Fault::Refused, 1)], 1));
}

#[test]
fn positions_and_counts_that_do_not_fit_the_messages_are_found() {
    let one = |change: fn(&mut Audit)| judged(|evidence| change(&mut evidence.audits[0])).1;
    let standing = Standing { last_seq: 6, read_seq: 2, unread: 2 };
    assert_eq!(one(|audit| audit.position = None), [(Fault::WrongPosition, 1)]);
    assert_eq!(one(|audit| audit.unread_http = 3), [(Fault::WrongPosition, 1)]);
    for wrong in [
        Standing { last_seq: 5, ..standing },
        Standing { unread: 1, ..standing },
        // An acknowledged watermark is behind, one that was never sent ahead; the count follows it.
        Standing { read_seq: 0, unread: 3, ..standing },
        Standing { read_seq: 4, unread: 1, ..standing },
    ] {
        let (_, faults) = judged(|evidence| {
            evidence.audits[0].position = Some(wrong);
            evidence.audits[0].unread_http = if wrong.last_seq == 5 || wrong.read_seq == 2 { 2 } else { wrong.unread };
        });
        assert_eq!(faults, [(Fault::WrongPosition, 1)], "{wrong:?}");
    }
}

#[test]
fn a_probe_that_came_by_answer_was_not_pushed() {
    // The last two of each conversation are probes.
    let (_, faults) = judged(|evidence| evidence.views[0].shown[4].via = Via::Answer);
    assert_eq!(faults, [(Fault::NotPushed, 1)]);
    let (counts, faults) = judged(|evidence| evidence.views[0].shown[3].via = Via::Answer);
    assert_eq!((faults, counts.shown_by_answer), (vec![], 1));
}
