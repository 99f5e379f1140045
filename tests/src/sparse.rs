//! Pushes and pulls of rows, message by message.

use bytes::Bytes;
use ps_common::dtype::as_le_bytes;
use ps_common::wire::pb;
use tonic::Status;

use crate::caller::{Caller, header};

/// Numbers of rows of a table.
pub type Names<'a> = (u32, &'a [u32]);

/// Row numbers as they travel.
pub fn numbers(rows: &[u32]) -> Bytes {
    rows.iter().flat_map(|row| row.to_le_bytes()).collect()
}

impl Caller {
    /// The messages of a push of rows: `values` are the elements of all that it brings.
    pub fn rows_messages(
        &self,
        (clock, version): (u64, u64),
        (brought, values): (&[Names<'_>], &[f32]),
        asked: &[Names<'_>],
    ) -> Vec<pb::PushRequest> {
        let names = |part: pb::Part, names: &[Names<'_>]| {
            let message = |&(table, rows): &Names<'_>| pb::PushRequest {
                part: part.into(),
                table,
                data: numbers(rows),
                ..Default::default()
            };
            names.iter().map(message).collect::<Vec<_>>()
        };
        let mut messages = names(pb::Part::Rows, brought);
        messages.extend(names(pb::Part::Asked, asked));
        messages.push(pb::PushRequest {
            dtype: pb::Dtype::F32.into(),
            last: true,
            data: Bytes::copy_from_slice(as_le_bytes(values)),
            ..Default::default()
        });
        messages[0].header = Some(pb::PushHeader { sparse: true, ..header(self, clock, version) });
        messages
    }

    /// One step: the result, and what came of theta with its version.
    pub async fn step_messages(
        &mut self,
        messages: Vec<pb::PushRequest>,
    ) -> Result<(pb::PushResult, u64, Vec<f32>), Status> {
        let mut answers =
            self.parameters.push_pull(tokio_stream::iter(messages)).await?.into_inner();
        let (mut result, mut version, mut bytes) = (None, 0, Vec::new());
        while let Some(answer) = answers.message().await? {
            version = answer.version;
            result = result.or(answer.result);
            bytes.extend_from_slice(&answer.data);
        }
        let result = result.expect("an answer has a result");
        self.clock = result.clock;
        Ok((result, version, floats(&bytes)))
    }

    /// Some rows of theta, and its version.
    pub async fn pull_rows(&mut self, asked: &[Names<'_>]) -> Result<(u64, Vec<f32>), Status> {
        let words = asked.iter().flat_map(|(table, rows)| {
            [*table, u32::try_from(rows.len()).expect("few")]
                .into_iter()
                .chain(rows.iter().copied())
        });
        let asked: Bytes = words.flat_map(u32::to_le_bytes).collect();
        let (rank, incarnation) = (self.rank, self.incarnation);
        let request = pb::PullRequest { rank, incarnation, asked, ..Default::default() };
        let mut stream = self.parameters.pull(request).await?.into_inner();
        let (mut version, mut bytes) = (0, Vec::new());
        while let Some(chunk) = stream.message().await? {
            version = chunk.version;
            bytes.extend_from_slice(&chunk.data);
        }
        Ok((version, floats(&bytes)))
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four"))).collect()
}
