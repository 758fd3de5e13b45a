// Loads a version folder with TensorFlow's own loader, replays its warm-up requests and times each signature.
//
//   probe VERSION_FOLDER [--threads=1,2] [--seconds=1] [--signature=S] [--batch=N] [--answers=FILE]
//
// It runs the code that TF Serving runs (LoadSavedModel, Session::Run), without Python and without a server. On stdout
// it writes one JSON object; an error is one line on stderr, and exit code 2. `probe.py` builds and starts it.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "google/protobuf/unknown_field_set.h"
#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.pb.h"
#include "tensorflow/core/lib/io/record_reader.h"
#include "tensorflow/core/lib/io/record_writer.h"
#include "tensorflow/core/public/session.h"
#include "tensorflow/core/util/command_line_flags.h"

namespace {

using google::protobuf::UnknownFieldSet;
using tensorflow::Tensor;
using Clock = std::chrono::steady_clock;

// Fields of tensorflow_serving/apis/{prediction_log,predict,model}.proto. TensorFlow has no headers of these messages, and
// generated ones would have to come from the protobuf release that it was built with, so they are read by number.
constexpr int kPredictLog = 6, kRequest = 1, kResponse = 2;
constexpr int kModelSpec = 1, kSignatureName = 3, kInputs = 2, kOutputs = 1;
constexpr int kKey = 1, kValue = 2;  // of an entry of a map

constexpr char kWarmup[] = "/assets.extra/tf_serving_warmup_requests";

struct Request {
  std::string signature;
  int64_t batch = 1;
  std::vector<std::pair<std::string, Tensor>> inputs;
  std::vector<std::string> outputs;  // as the signature calls them
  std::vector<std::string> fetches;  // the tensors of these
  std::string serialized;            // PredictRequest
};

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "probe: %s\n", what.substr(0, what.find('\n')).c_str());
  // Not exit(): other threads may be inside TensorFlow.
  std::_Exit(2);
}

void Check(const absl::Status& status, const std::string& what) {
  if (!status.ok()) Fail(what + ": " + std::string(status.message()));
}

double SecondsSince(Clock::time_point started) {
  return std::chrono::duration<double>(Clock::now() - started).count();
}

std::string Serialized(const UnknownFieldSet& message) {
  std::string serialized;
  message.SerializeToString(&serialized);
  return serialized;
}

// Values of a field that holds messages or strings.
std::vector<std::string> Values(const std::string& serialized, int number) {
  UnknownFieldSet message;
  if (!message.ParseFromString(serialized)) Fail("a warm-up record is no PredictionLog");
  std::vector<std::string> values;
  for (int n = 0; n < message.field_count(); ++n) {
    const auto& field = message.field(n);
    if (field.number() == number && field.type() == field.TYPE_LENGTH_DELIMITED) {
      values.push_back(field.length_delimited());
    }
  }
  return values;
}

// Of a field that occurs once; empty where it is not set.
std::string Value(const std::string& serialized, int number) {
  const auto values = Values(serialized, number);
  return values.empty() ? "" : values.back();
}

// A message of two fields.
std::string Message(int first, const std::string& value, int second, const std::string& other) {
  UnknownFieldSet message;
  message.AddLengthDelimited(first, value);
  message.AddLengthDelimited(second, other);
  return Serialized(message);
}

Request ReadRequest(const std::string& record, const tensorflow::SavedModelBundleInterface& model) {
  Request request;
  request.serialized = Value(Value(record, kPredictLog), kRequest);
  request.signature = Value(Value(request.serialized, kModelSpec), kSignatureName);
  if (request.signature.empty()) request.signature = "serving_default";
  const auto found = model.GetSignatures().find(request.signature);
  if (found == model.GetSignatures().end()) Fail("warm-up requests name " + request.signature + ", which is no signature");
  for (const std::string& entry : Values(request.serialized, kInputs)) {
    const std::string name = Value(entry, kKey);
    const auto input = found->second.inputs().find(name);
    if (input == found->second.inputs().end()) Fail(request.signature + " has no input " + name);
    tensorflow::TensorProto proto;
    Tensor tensor;
    if (!proto.ParseFromString(Value(entry, kValue)) || !tensor.FromProto(proto)) {
      Fail(request.signature + ": input " + name + " is no tensor");
    }
    if (tensor.dims() > 0) request.batch = tensor.dim_size(0);
    request.inputs.emplace_back(input->second.name(), std::move(tensor));
  }
  for (const auto& [name, info] : found->second.outputs()) {
    request.outputs.push_back(name);
    request.fetches.push_back(info.name());
  }
  return request;
}

std::vector<Request> ReadRequests(const std::string& path, const tensorflow::SavedModelBundleInterface& model) {
  std::unique_ptr<tensorflow::RandomAccessFile> file;
  Check(tensorflow::Env::Default()->NewRandomAccessFile(path, &file), path);
  tensorflow::io::SequentialRecordReader reader(file.get());
  std::vector<Request> requests;
  tensorflow::tstring record;
  absl::Status status;
  while ((status = reader.ReadRecord(&record)).ok()) requests.push_back(ReadRequest(record, model));
  if (!absl::IsOutOfRange(status)) Check(status, path);
  if (requests.empty()) Fail(path + " has no requests");
  return requests;
}

std::vector<Tensor> Run(tensorflow::Session* session, const Request& request) {
  std::vector<Tensor> outputs;
  Check(session->Run(request.inputs, request.fetches, {}, &outputs), request.signature);
  return outputs;
}

// A PredictionLog with request and response, as TF Serving's request logging writes it.
std::string Answered(const Request& request, const std::vector<Tensor>& outputs) {
  UnknownFieldSet response;
  for (size_t n = 0; n < outputs.size(); ++n) {
    tensorflow::TensorProto proto;
    outputs[n].AsProtoField(&proto);
    response.AddLengthDelimited(kOutputs, Message(kKey, request.outputs[n], kValue, proto.SerializeAsString()));
  }
  UnknownFieldSet log;
  log.AddLengthDelimited(kPredictLog, Message(kRequest, request.serialized, kResponse, Serialized(response)));
  return Serialized(log);
}

// Answers every request once: what TF Serving does before a version takes traffic.
void Replay(tensorflow::Session* session, const std::vector<Request>& requests, const std::string& answers) {
  std::unique_ptr<tensorflow::WritableFile> file;
  std::unique_ptr<tensorflow::io::RecordWriter> writer;
  if (!answers.empty()) {
    Check(tensorflow::Env::Default()->NewWritableFile(answers, &file), answers);
    writer = std::make_unique<tensorflow::io::RecordWriter>(file.get());
  }
  for (const Request& request : requests) {
    const std::vector<Tensor> outputs = Run(session, request);
    if (writer) Check(writer->WriteRecord(Answered(request, outputs)), answers);
  }
  if (writer) Check(writer->Close(), answers);
  if (file) Check(file->Close(), answers);
}

// Closed-loop load: each thread asks again as soon as it has its answer, at least once. Milliseconds of every call.
std::vector<double> Load(tensorflow::Session* session, const std::vector<const Request*>& requests, int threads,
                         Clock::time_point end) {
  std::vector<std::vector<double>> times(threads);
  std::vector<std::thread> running;
  for (int number = 0; number < threads; ++number) {
    running.emplace_back([&, number] {
      size_t next = number;
      do {
        const Request& request = *requests[next++ % requests.size()];
        const auto started = Clock::now();
        Run(session, request);
        times[number].push_back(1e3 * SecondsSince(started));
      } while (Clock::now() < end);
    });
  }
  std::vector<double> all;
  for (int number = 0; number < threads; ++number) {
    running[number].join();
    all.insert(all.end(), times[number].begin(), times[number].end());
  }
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  std::string threads = "1", signature, answers;
  float seconds = 1.0f;
  int64_t batch = 0;
  const std::vector<tensorflow::Flag> flags = {
      {"threads", &threads, "numbers of threads that ask at a time, with commas"},
      {"seconds", &seconds, "for each signature, batch size and number of threads"},
      {"signature", &signature, "time this one alone"},
      {"batch", &batch, "time requests of this size alone"},
      {"answers", &answers, "write requests and answers to this file, a TFRecord of PredictionLog"},
  };
  const std::string usage = tensorflow::Flags::Usage("probe VERSION_FOLDER", flags);
  std::vector<int> levels;
  const bool parsed = tensorflow::Flags::Parse(&argc, argv, flags);
  for (const auto number : absl::StrSplit(threads, ',')) {
    if (!absl::SimpleAtoi(number, &levels.emplace_back()) || levels.back() < 1) {
      Fail("--threads=" + threads + " is no list of numbers above 0");
    }
  }
  if (!parsed || argc != 2) {
    std::cerr << usage;
    return 2;
  }
  const std::string version = argv[1];

  auto started = Clock::now();
  tensorflow::SavedModelBundleLite model;
  Check(tensorflow::LoadSavedModel({}, {}, version, {"serve"}, &model), version + " does not load");
  const double load_seconds = SecondsSince(started);

  const std::vector<Request> requests = ReadRequests(version + kWarmup, model);
  started = Clock::now();
  Replay(model.GetSession(), requests, answers);
  const double replay_seconds = SecondsSince(started);

  std::map<std::pair<std::string, int64_t>, std::vector<const Request*>> kinds;
  for (const Request& request : requests) {
    if ((signature.empty() || request.signature == signature) && (batch == 0 || request.batch == batch)) {
      kinds[{request.signature, request.batch}].push_back(&request);
    }
  }
  if (kinds.empty()) Fail("no warm-up request is of --signature and --batch");

  std::cout << "{\"load_seconds\": " << load_seconds
            << ", \"replay_seconds\": " << replay_seconds << ", \"requests\": " << requests.size() << ", \"loads\": [";
  const char* separator = "\n";
  for (const auto& [kind, of_kind] : kinds) {
    for (const int level : levels) {
      started = Clock::now();
      const auto end = started + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
      const std::vector<double> milliseconds = Load(model.GetSession(), of_kind, level, end);
      std::cout << separator << "{\"signature\": " << std::quoted(kind.first) << ", \"batch\": " << kind.second
                << ", \"threads\": " << level << ", \"seconds\": " << SecondsSince(started) << ", \"milliseconds\": [";
      for (size_t n = 0; n < milliseconds.size(); ++n) std::cout << (n ? ", " : "") << milliseconds[n];
      std::cout << "]}";
      separator = ",\n";
    }
  }
  std::cout << "\n]}" << std::endl;
  return 0;
}
