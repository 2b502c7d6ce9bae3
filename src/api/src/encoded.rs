//! The service for a server that keeps workers encoded: a response is a copy of bytes that many
//! responses share. On the wire the messages equal the generated ones of the same names.
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, encode_key, encode_varint, encoded_len_varint},
};

include!(concat!(env!("OUT_DIR"), "/encoded/ottoscaler.v1.rs"));

/// The number of `WorkerStatusResponse.workers` in the contract.
const WORKERS_FIELD: u32 = 6;
/// The number of `WorkerEvent.type` in the contract.
const TYPE_FIELD: u32 = 1;
/// The number of `WorkerEvent.worker` in the contract.
const WORKER_FIELD: u32 = 2;
/// The encoded length of the key of a field whose number is at most 15.
const KEY_LEN: usize = 1;

/// Encoded workers in one piece of memory, which clones and responses share.
#[derive(Debug, Clone, Default)]
pub struct EncodedWorkers {
    /// The workers, each as an element of `WorkerStatusResponse.workers`.
    bytes: Bytes,
    /// The end of each worker in `bytes`.
    ends: Vec<usize>,
}

impl FromIterator<crate::WorkerPodStatus> for EncodedWorkers {
    fn from_iter<I: IntoIterator<Item = crate::WorkerPodStatus>>(workers: I) -> Self {
        let mut bytes = BytesMut::new();
        let ends = workers.into_iter().map(|worker| {
            prost::encoding::message::encode(WORKERS_FIELD, &worker, &mut bytes);
            bytes.len()
        });
        let ends = ends.collect();
        // A copy has no spare capacity: it may be kept for long.
        let bytes = Bytes::copy_from_slice(&bytes);
        Self { bytes, ends }
    }
}

impl EncodedWorkers {
    /// Returns all workers, as elements of `WorkerStatusResponse.workers`.
    pub fn all(&self) -> Bytes {
        self.bytes.clone()
    }

    /// Returns some workers by their positions, as elements of `WorkerStatusResponse.workers`.
    ///
    /// # Panics
    /// Panics if there are fewer workers.
    pub fn elements(&self, positions: std::ops::Range<usize>) -> Bytes {
        let end_of = |count: usize| if count == 0 { 0 } else { self.ends[count - 1] };
        self.bytes
            .slice(end_of(positions.start)..end_of(positions.end))
    }

    /// Returns one worker by its position, as a message.
    ///
    /// # Panics
    /// Panics if there are fewer workers.
    pub fn message(&self, position: usize) -> Bytes {
        let mut element = self.elements(position..position + 1);
        element.advance(KEY_LEN);
        // The key was written by this module, and so was the length.
        let length = prost::decode_length_delimiter(&mut element).unwrap_or_default();
        debug_assert_eq!(length, element.len());
        element
    }
}

/// A `WorkerStatusResponse` whose workers are encoded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkerStatusResponse {
    /// Everything but the workers.
    pub head: crate::WorkerStatusResponse,
    /// Pieces of [`EncodedWorkers`].
    pub workers: Vec<Bytes>,
}

impl Message for WorkerStatusResponse {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        self.head.encode_raw(buf);
        for workers in &self.workers {
            buf.put_slice(workers);
        }
    }

    fn encoded_len(&self) -> usize {
        self.head.encoded_len() + self.workers.iter().map(Bytes::len).sum::<usize>()
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        self.head.merge_field(tag, wire_type, buf, ctx)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// A `WorkerEvent` whose worker is encoded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkerEvent {
    pub r#type: i32,
    /// The worker as a message, see [`EncodedWorkers::message`].
    pub worker: Option<Bytes>,
}

impl WorkerEvent {
    /// Decodes the worker.
    ///
    /// # Errors
    /// Returns an error if the bytes are no worker.
    pub fn decode_worker(&self) -> Result<Option<crate::WorkerPodStatus>, DecodeError> {
        let worker = self.worker.clone();
        worker.map(crate::WorkerPodStatus::decode).transpose()
    }
}

impl Message for WorkerEvent {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if self.r#type != 0 {
            prost::encoding::int32::encode(TYPE_FIELD, &self.r#type, buf);
        }
        if let Some(worker) = &self.worker {
            encode_key(WORKER_FIELD, WireType::LengthDelimited, buf);
            encode_varint(worker.len() as u64, buf);
            buf.put_slice(worker);
        }
    }

    fn encoded_len(&self) -> usize {
        let kind = match self.r#type {
            0 => 0,
            kind => prost::encoding::int32::encoded_len(TYPE_FIELD, &kind),
        };
        let worker = self.worker.as_ref();
        kind + worker.map_or(0, |w| {
            KEY_LEN + encoded_len_varint(w.len() as u64) + w.len()
        })
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            TYPE_FIELD => prost::encoding::int32::merge(wire_type, &mut self.r#type, buf, ctx),
            WORKER_FIELD => {
                let worker = self.worker.get_or_insert_default();
                prost::encoding::bytes::merge(wire_type, worker, buf, ctx)
            }
            _ => prost::encoding::skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(index: i32) -> crate::WorkerPodStatus {
        crate::WorkerPodStatus {
            pod_name: format!("otto-agent-t-{index}"),
            labels: (0..index)
                .map(|n| (n.to_string(), "x".repeat(200)))
                .collect(),
            worker_index: index,
            exit_code: Some(0),
            ..Default::default()
        }
    }

    #[test]
    fn an_encoded_response_is_on_the_wire_as_the_generated_one() {
        let workers: Vec<_> = (0..4).map(worker).collect();
        let encoded: EncodedWorkers = workers.iter().cloned().collect();
        let head = crate::WorkerStatusResponse {
            total_count: 4,
            paused: "because".into(),
            ..Default::default()
        };
        let of = |pieces: Vec<Bytes>, expected: &[crate::WorkerPodStatus]| {
            let response = WorkerStatusResponse {
                head: head.clone(),
                workers: pieces,
            };
            let bytes = response.encode_to_vec();
            assert_eq!(bytes.len(), response.encoded_len());
            let decoded = crate::WorkerStatusResponse::decode(bytes.as_slice());
            let expected = crate::WorkerStatusResponse {
                workers: expected.to_vec(),
                ..head.clone()
            };
            assert_eq!(decoded, Ok(expected));
        };
        of(vec![encoded.all()], &workers);
        of(vec![], &[]);
        of(vec![encoded.elements(0..0)], &[]);
        of(
            vec![encoded.elements(3..4), encoded.elements(1..3)],
            &[worker(3), worker(1), worker(2)],
        );
    }

    #[test]
    fn an_encoded_event_is_on_the_wire_as_the_generated_one() {
        let encoded: EncodedWorkers = [worker(1), worker(2)].into_iter().collect();
        for (kind, worker) in [(0, Some(worker(2))), (1, Some(worker(2))), (2, None)] {
            let event = WorkerEvent {
                r#type: kind,
                worker: worker.as_ref().map(|_| encoded.message(1)),
            };
            let bytes = event.encode_to_vec();
            assert_eq!(bytes.len(), event.encoded_len());
            let expected = crate::WorkerEvent {
                r#type: kind,
                worker,
            };
            assert_eq!(crate::WorkerEvent::decode(bytes.as_slice()), Ok(expected));
            assert_eq!(WorkerEvent::decode(bytes.as_slice()), Ok(event));
        }
    }
}
