// Runs a generated edgeface_example.cpp over cases from a file: crops and flattened answers go to another.
#define EDGEFACE_LIBRARY
#include "edgeface_example.cpp"

#include <utility>

namespace {

using Values = std::vector<float>;

void put(Values& to, float value) { to.push_back(value); }
void put(Values& to, const Values& values) { to.insert(to.end(), values.begin(), values.end()); }
void put(Values& to, const std::vector<edgeface::Point>& points) {
  for (const auto& point : points) to.insert(to.end(), {point.x, point.y});
}
void put(Values& to, const edgeface::Choice& choice) {
  to.push_back(float(choice.index));
  put(to, choice.probabilities);
}
void put(Values& to, const std::vector<edgeface::Attribute>& attributes) {
  for (const auto& attribute : attributes) to.insert(to.end(), {float(attribute.present), attribute.probability});
}

template <typename T>
void read(std::istream& from, T* values, std::size_t count) {
  if (!from.read(reinterpret_cast<char*>(values), std::streamsize(count * sizeof(T)))) throw std::runtime_error("short");
}

}  // namespace

int main(int, char** words) {
  const std::vector<std::pair<std::string, int>> sizes = {@SIZES@};
  std::ifstream cases(words[1], std::ios::binary);
  std::ofstream answers(words[2], std::ios::binary);
  std::int32_t count = 0;
  read(cases, &count, 1);
  while (count-- > 0) {
    std::int32_t size[2];
    float crop[3];
    read(cases, size, 2);
    read(cases, crop, 3);
    // Rows are padded, so that a stride that is taken for the width is noticed.
    const std::size_t stride = std::size_t(size[0]) * 3 + 5;
    std::vector<std::uint8_t> pixels(stride * size[1]);
    for (int y = 0; y < size[1]; ++y) read(cases, pixels.data() + y * stride, std::size_t(size[0]) * 3);
    edgeface::Outputs outputs;
    for (const auto& [name, length] : sizes) {
      outputs[name].resize(length);
      read(cases, outputs[name].data(), length);
    }
    const edgeface::Crop where{crop[0], crop[1], crop[2]};
    const auto face = @TENSOR@;
    answers.write(reinterpret_cast<const char*>(face.data()), std::streamsize(face.size() * sizeof(face[0])));
    const edgeface::Answers answer = edgeface::decode(outputs, where);
    Values flat;
    @PUTS@
    for (const auto& around :
         {edgeface::around_box(10.25, 20.125, 33.5, 47.75),
          edgeface::around_landmarks({{10, 20}, {30.5, 20}, {20, 30}, {12, 44}, {28, 43}})}) {
      put(flat, {around.center_x, around.center_y, around.side});
    }
    answers.write(reinterpret_cast<const char*>(flat.data()), std::streamsize(flat.size() * sizeof(float)));
  }
  return answers.flush() ? 0 : 1;
}
