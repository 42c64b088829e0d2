//! From bytes to a question and from an answer to bytes that fit.

use coact_core::{Error, ErrorKind, Result};
use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::RecordType,
    serialize::binary::{BinEncodable, BinEncoder},
};

use super::answer::Answer;

/// The least that every client takes over UDP.
const UDP_BYTES_MIN: u16 = 512;
/// The most that we send over UDP, whatever the client takes: more may be cut into fragments on the way and get lost.
const UDP_BYTES_MAX: u16 = 1_232;
/// The length of a header.
const HEADER_BYTES: usize = 12;
/// The fewest bytes that a record of an answer takes.
const RECORD_BYTES_MIN: usize = 12;

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// What came.
#[derive(Debug)]
pub(super) enum Received {
    /// A question.
    Question(Question),
    /// Something that is answered with an error.
    Faulty(Question, ResponseCode),
    /// Something that is not answered, such as an answer.
    Nothing,
}

/// What is needed to answer.
#[derive(Debug)]
pub(super) struct Question {
    metadata: Metadata,
    /// `None` if the message could not be read.
    pub(super) query: Option<Query>,
    edns: Option<Edns>,
    transport: Transport,
}

/// Reads a message.
pub(super) fn read(bytes: &[u8], transport: Transport) -> Received {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Received::Nothing };
    if header[2] & 0x80 != 0 {
        // An answer: to answer it would begin a conversation between two servers.
        return Received::Nothing;
    }
    let Ok(message) = Message::from_vec(bytes) else {
        return Received::Faulty(Question::unreadable(header, transport), ResponseCode::FormErr);
    };
    let fault = fault_of(&message);
    let question = Question {
        metadata: message.metadata,
        query: message.queries.into_iter().next(),
        edns: message.edns,
        transport,
    };
    match fault {
        Some(code) => Received::Faulty(question, code),
        None => Received::Question(question),
    }
}

fn fault_of(message: &Message) -> Option<ResponseCode> {
    if message.version() > 0 {
        return Some(ResponseCode::BADVERS);
    }
    if message.metadata.op_code != OpCode::Query {
        return Some(ResponseCode::NotImp);
    }
    (message.queries.len() != 1).then_some(ResponseCode::FormErr)
}

impl Question {
    /// What is left of a message that could not be read: its number.
    fn unreadable(header: &[u8; HEADER_BYTES], transport: Transport) -> Self {
        let id = u16::from_be_bytes([header[0], header[1]]);
        let metadata = Metadata::new(id, MessageType::Query, OpCode::Query);
        Self { metadata, query: None, edns: None, transport }
    }

    /// What was asked for, if that could be read.
    pub(super) fn kind(&self) -> Option<RecordType> {
        self.query.as_ref().map(Query::query_type)
    }

    /// The bytes of an answer: all of it if it fits; otherwise without what is only helpful; otherwise as much as fits,
    /// marked as cut.
    ///
    /// # Errors
    /// `Internal` for records that cannot be written.
    pub(super) fn answer(&self, answer: Answer) -> Result<Vec<u8>> {
        let limit = self.limit();
        let mut message = self.message(answer);
        loop {
            let (bytes, is_cut) = encode(&message, limit)?;
            if !is_cut {
                return Ok(bytes);
            }
            if message.additionals.is_empty() {
                break;
            }
            message.additionals.truncate(message.additionals.len() / 2);
        }
        self.cut(message, limit)
    }

    /// Takes as many of the answers as fit, and says that these are not all.
    fn cut(&self, mut message: Message, limit: u16) -> Result<Vec<u8>> {
        message.answers.truncate(usize::from(limit) / RECORD_BYTES_MIN);
        let (mut fitting, mut too_many) = (0, message.answers.len());
        while too_many - fitting > 1 {
            let middle = fitting.midpoint(too_many);
            let mut part = message.clone();
            part.answers.truncate(middle);
            if encode(&part, limit)?.1 {
                too_many = middle;
            } else {
                fitting = middle;
            }
        }
        message.answers.truncate(fitting);
        message.metadata.truncation = true;
        Ok(encode(&message, limit)?.0)
    }

    fn limit(&self) -> u16 {
        match self.transport {
            Transport::Tcp => u16::MAX,
            Transport::Udp => {
                let taken = self.edns.as_ref().map_or(UDP_BYTES_MIN, Edns::max_payload);
                taken.clamp(UDP_BYTES_MIN, UDP_BYTES_MAX)
            }
        }
    }

    fn message(&self, answer: Answer) -> Message {
        let mut message = Message::response(self.metadata.id, self.metadata.op_code);
        message.metadata.recursion_desired = self.metadata.recursion_desired;
        message.metadata.response_code = answer.code;
        message.metadata.authoritative = matches!(answer.code, ResponseCode::NoError | ResponseCode::NXDomain);
        message.queries.extend(self.query.clone());
        message.answers = answer.answers;
        message.authorities = answer.authorities;
        message.additionals = answer.additionals;
        message.edns = self.edns.as_ref().map(|_| {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_BYTES_MAX);
            edns
        });
        message
    }
}

/// The bytes, and whether something had to be left out.
fn encode(message: &Message, limit: u16) -> Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::with_capacity(UDP_BYTES_MAX.into());
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    message
        .emit(&mut encoder)
        .map_err(|error| Error::new(ErrorKind::Internal, "a DNS answer could not be written").with_source(error))?;
    let is_cut = bytes.get(2).is_some_and(|flags| flags & 0x02 != 0);
    Ok((bytes, is_cut))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::{Name, RData, Record, rdata::A};
    use proptest::prelude::*;

    use super::*;

    fn asked(edns: Option<u16>, transport: Transport) -> Question {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii("web.service.coact.").expect("a name"), RecordType::A));
        message.edns = edns.map(|bytes| {
            let mut edns = Edns::new();
            edns.set_max_payload(bytes);
            edns
        });
        match read(&message.to_vec().expect("bytes"), transport) {
            Received::Question(question) => question,
            other => panic!("{other:?}"),
        }
    }

    fn with(answers: u32, additionals: u32) -> Answer {
        let name = Name::from_ascii("web.service.coact.").expect("a name");
        let record = |ip: u32| Record::from_rdata(name.clone(), 5, RData::A(A(Ipv4Addr::from(ip))));
        Answer {
            answers: (0..answers).map(record).collect(),
            additionals: (0..additionals).map(record).collect(),
            ..Answer::of(ResponseCode::NoError)
        }
    }

    #[test]
    fn an_answer_is_cut_to_what_the_client_takes() {
        for (edns, transport, limit) in [
            (None, Transport::Udp, 512),
            (Some(100), Transport::Udp, 512),
            (Some(800), Transport::Udp, 800),
            (Some(65_000), Transport::Udp, 1_232),
            (None, Transport::Tcp, 65_535),
            (Some(512), Transport::Tcp, 65_535),
        ] {
            let question = asked(edns, transport);
            let bytes = question.answer(with(10_000, 0)).expect("bytes");
            let read = Message::from_vec(&bytes).expect("a valid answer");
            assert!(bytes.len() <= limit && bytes.len() + 48 > limit, "{edns:?} {transport:?}: {}", bytes.len());
            assert!(read.metadata.truncation);
            assert_eq!(read.edns.is_some(), edns.is_some(), "whoever speaks EDNS is answered in it");
            // The control: what fits is not cut, also if what is only helpful does not.
            let read = Message::from_vec(&question.answer(with(20, 5_000)).expect("bytes")).expect("a valid answer");
            assert_eq!((read.metadata.truncation, read.answers.len()), (false, 20));
        }
    }

    #[test]
    fn what_is_no_question_is_refused_or_ignored() {
        assert!(matches!(read(&[0; 11], Transport::Udp), Received::Nothing));
        let code = |bytes: &[u8]| match read(bytes, Transport::Udp) {
            Received::Faulty(_, code) => Some(code),
            _ => None,
        };
        assert_eq!(code(&[0; 12]), Some(ResponseCode::FormErr), "without a question");
        assert_eq!(code(&[0xff, 0xff, 0x01, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0]), Some(ResponseCode::FormErr));
        assert!(
            matches!(read(&[0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0], Transport::Udp), Received::Nothing),
            "an answer"
        );
        assert_eq!(code(&[0, 0, 0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Some(ResponseCode::NotImp), "an update");
        let mut newer = Message::new(7, MessageType::Query, OpCode::Query);
        newer.edns = Some(Edns::new().set_version(1).clone());
        assert_eq!(code(&newer.to_vec().expect("bytes")), Some(ResponseCode::BADVERS));
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Received::Question(question) | Received::Faulty(question, _) = read(&bytes, Transport::Udp) {
                let answered = question.answer(Answer::of(ResponseCode::FormErr)).expect("bytes");
                prop_assert!(answered.len() <= 1_232);
            }
        }
    }
}
