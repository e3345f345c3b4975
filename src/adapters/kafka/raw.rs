//! The one module with raw pointers: header names as bytes, the ids of topics and members, and a setting of the embedded
//! broker.
//!
//! Kafka does not hold producers to UTF-8 in header names, and rdkafka's safe reader panics on a name that is not:
//! one hostile record would end the stage. So headers are read from, and written to, librdkafka directly. A name
//! with a NUL byte in it is cut there by librdkafka itself.
//!
//! Of one header of many, only that one is looked at. The ids of a topic and of a member, to split off a partition's
//! queue before it is assigned, and how long the embedded broker waits for a group's first members have no safe wrapper
//! in rdkafka.
#![allow(unsafe_code, reason = "see the module's head")]

use std::ffi::{CStr, CString, c_void};
use std::time::Duration;
use std::{ptr, slice};

use bytes::Bytes;
use rdkafka::bindings as rd;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::message::{BorrowedMessage, OwnedHeaders};

/// Calls `f` with each header's name and value, in order.
pub(super) fn for_each_header(message: &BorrowedMessage<'_>, mut f: impl FnMut(&[u8], Option<&[u8]>)) {
    let mut headers = ptr::null_mut();
    // SAFETY: the message is alive for the whole call, librdkafka parses its headers into memory that it owns.
    let found = unsafe { rd::rd_kafka_message_headers(message.ptr(), &raw mut headers) };
    if found != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return;
    }
    let mut index = 0;
    loop {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0_usize);
        // SAFETY: `headers` was returned by librdkafka for this message; the out pointers are valid.
        let found =
            unsafe { rd::rd_kafka_header_get_all(headers, index, &raw mut name, &raw mut value, &raw mut size) };
        if found != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return;
        }
        // SAFETY: librdkafka keeps names NUL-terminated, and `size` bytes at a value that is not null, as long as
        // the message lives.
        let (name, value) = unsafe {
            let name = CStr::from_ptr(name).to_bytes();
            let value = (!value.is_null()).then(|| slice::from_raw_parts(value.cast::<u8>(), size));
            (name, value)
        };
        f(name, value);
        index += 1;
    }
}

/// The value of the last header of this name; `None` when there is none or it is null.
pub(super) fn last_header<'m>(message: &'m BorrowedMessage<'_>, name: &CStr) -> Option<&'m [u8]> {
    let (mut headers, mut value, mut size) = (ptr::null_mut(), ptr::null(), 0_usize);
    // SAFETY: the message is alive for the whole call, librdkafka parses its headers into memory that it owns; the name
    // is NUL-terminated and the out pointers are valid.
    let found = unsafe {
        match rd::rd_kafka_message_headers(message.ptr(), &raw mut headers) {
            rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {
                rd::rd_kafka_header_get_last(headers, name.as_ptr(), &raw mut value, &raw mut size)
            }
            failed => failed,
        }
    };
    let is_there = found == rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && !value.is_null();
    // SAFETY: librdkafka keeps `size` bytes there as long as the message lives.
    is_there.then(|| unsafe { slice::from_raw_parts(value.cast::<u8>(), size) })
}

/// What the cluster calls a topic beside its name: each topic that is made has an id of its own, under an old name, too.
/// `None` when the brokers have no ids (before Kafka 2.8) or do not answer in time. Blocks.
pub(super) fn topic_id<C: ClientContext>(owner: &Client<C>, topic: &CStr, timeout: Duration) -> Option<String> {
    const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";
    let ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let client = owner.native_ptr();
    let mut name = topic.as_ptr();
    // SAFETY: the client outlives the call; what is made here is destroyed here, each after what refers to it, and the
    // id is copied before the event that owns it goes. librdkafka takes null for "no event".
    unsafe {
        let topics = rd::rd_kafka_TopicCollection_of_topic_names(&raw mut name, 1);
        let options = rd::rd_kafka_AdminOptions_new(client, rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        rd::rd_kafka_AdminOptions_set_request_timeout(options, ms, ptr::null_mut(), 0);
        let queue = rd::rd_kafka_queue_new(client);
        rd::rd_kafka_DescribeTopics(client, topics, options, queue);
        let event = rd::rd_kafka_queue_poll(queue, ms);
        let mut id = None;
        let result = if event.is_null() { ptr::null() } else { rd::rd_kafka_event_DescribeTopics_result(event) };
        if !result.is_null() {
            let mut count = 0;
            let described = rd::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
            if count == 1 && !(*described).is_null() {
                let uuid = rd::rd_kafka_TopicDescription_topic_id(*described);
                let text = if uuid.is_null() { ptr::null() } else { rd::rd_kafka_Uuid_base64str(uuid) };
                id = (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned());
            }
        }
        if !event.is_null() {
            rd::rd_kafka_event_destroy(event);
        }
        rd::rd_kafka_queue_destroy(queue);
        rd::rd_kafka_AdminOptions_destroy(options);
        rd::rd_kafka_TopicCollection_destroy(topics);
        id.filter(|id| id != NO_ID)
    }
}

/// The headers as librdkafka wants them.
pub(super) fn to_native(headers: &[(Bytes, Option<Bytes>)]) -> OwnedHeaders {
    let native = OwnedHeaders::new_with_capacity(headers.len());
    let list = ptr::from_ref(native.as_borrowed()).cast_mut().cast::<rd::rd_kafka_headers_t>();
    for (name, value) in headers {
        let (value_ptr, value_len) =
            value.as_ref().map_or((ptr::null::<c_void>(), 0), |v| (v.as_ptr().cast(), v.len() as isize));
        // SAFETY: `list` is the writable list that `native` owns; librdkafka copies name and value.
        let added =
            unsafe { rd::rd_kafka_header_add(list, name.as_ptr().cast(), name.len() as isize, value_ptr, value_len) };
        // The only failure is a read-only list, which a fresh one is not.
        debug_assert!(added == rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
    }
    native
}

/// Whether the client has a member id; it forgets it when it loses its membership.
pub(super) fn has_member_id<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> bool {
    // SAFETY: the client is alive for the whole call; the copy of the id is NUL-terminated and given back.
    unsafe {
        let id = rd::rd_kafka_memberid(consumer.client().native_ptr());
        let is_some = !id.is_null() && *id != 0;
        rd::rd_kafka_mem_free(consumer.client().native_ptr(), id.cast());
        is_some
    }
}

/// From its next assignment on, the records of this partition stay in a queue of their own.
///
/// librdkafka joins a partition's queue to the common one when it begins to fetch, but not one that the application has
/// split off before.
pub(super) fn split_off<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str, partition: i32) {
    let Ok(topic) = CString::new(topic) else { return };
    // SAFETY: the client and the name are alive for the whole calls; the reference to the queue is given back.
    unsafe {
        let queue = rd::rd_kafka_queue_get_partition(consumer.client().native_ptr(), topic.as_ptr(), partition);
        if !queue.is_null() {
            rd::rd_kafka_queue_forward(queue, ptr::null_mut());
            rd::rd_kafka_queue_destroy(queue);
        }
    }
}

/// Sets how long the mock cluster that `owner` has started waits for the first members of a group; nothing happens
/// when it has started none.
pub(super) fn set_first_join_delay<C: ClientContext>(owner: &Client<C>, delay: Duration) {
    // SAFETY: the client is alive for the whole call.
    let cluster = unsafe { rd::rd_kafka_handle_mock_cluster(owner.native_ptr()) };
    if !cluster.is_null() {
        let ms = i32::try_from(delay.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the client owns the cluster and is alive; librdkafka takes the cluster's lock itself.
        unsafe { rd::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, ms) };
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers;

    use super::*;

    #[test]
    fn names_and_values_keep_their_bytes() {
        let headers = [
            (Bytes::from_static(b"plain"), Some(Bytes::from_static(b"v"))),
            (Bytes::from_static(b"empty"), Some(Bytes::new())),
            (Bytes::from_static(b"null"), None),
            (Bytes::from_static(b"binary"), Some(Bytes::from_static(&[0, 255, 0]))),
        ];
        let native = to_native(&headers);
        let back: Vec<_> = native.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect();
        assert_eq!(
            back,
            vec![
                ("plain".into(), Some(b"v".to_vec())),
                ("empty".into(), Some(vec![])),
                ("null".into(), None),
                ("binary".into(), Some(vec![0, 255, 0])),
            ]
        );
    }
}
